"""`lucid verify`: finds what a run can replay, replays it, and compares what comes out with what the run recorded."""
