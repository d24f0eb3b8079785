"""The scripts that are written without spaces between words, as parts of a regular expression's `[...]`.

The ranges are the blocks of the Unicode Standard. Yi and Korean are not among them: they put spaces between words.
"""

# Lao, like Thai, has spaces between clauses and sentences; Tibetan has a dot between syllables.
_THAI_AND_LAO = "\u0e00-\u0eff"
TIBETAN = "\u0f00-\u0fff"
# Burmese, Tai Le, New Tai Lue, Khmer, Tai Tham, Balinese, Javanese.
_OTHERS = "\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9ff\uaa60-\uaa7f"
SYLLABIC = _THAI_AND_LAO + TIBETAN + _OTHERS
# Radicals, kana, Bopomofo and Chinese characters, also those of half width, of compatibility, and of later planes.
_IDEOGRAPHS = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u303b\u3041-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U0001aff0-\U0001b16f\U00020000-\U0003fffd"
)
UNSPACED = SYLLABIC + _IDEOGRAPHS
