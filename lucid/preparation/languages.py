"""The languages whose abbreviations `sentencex` knows, by their codes, and those that have hardly any."""

import re
from difflib import get_close_matches

from lucid.errors import DataError

LANGUAGES = {
    "am": "Amharic",
    "ar": "Arabic",
    "bg": "Bulgarian",
    "bn": "Bengali",
    "bo": "Tibetan",
    "ca": "Catalan",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fa": "Persian",
    "fi": "Finnish",
    "fr": "French",
    "gu": "Gujarati",
    "hi": "Hindi",
    "hy": "Armenian",
    "it": "Italian",
    "ja": "Japanese",
    "kk": "Kazakh",
    "km": "Khmer",
    "kn": "Kannada",
    "ko": "Korean",
    "lo": "Lao",
    "ml": "Malayalam",
    "mr": "Marathi",
    "my": "Burmese",
    "nl": "Dutch",
    "pa": "Punjabi",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "sk": "Slovak",
    "ta": "Tamil",
    "te": "Telugu",
    "th": "Thai",
    "uk": "Ukrainian",
    "ur": "Urdu",
    "zh": "Chinese",
}


def language_code(language: str) -> str:
    """Return the code of a language, given by its code (`de`, `de-AT`) or its English name, in any case.

    Raises `DataError`, which names the nearest language or all of them, if it is none of `LANGUAGES`.
    """
    wanted = language.strip().lower()
    codes = {name.lower(): code for code, name in LANGUAGES.items()} | {code: code for code in LANGUAGES}
    code = codes.get(wanted) or codes.get(re.split("[-_]", wanted)[0])
    if code is not None:
        return code
    near = get_close_matches(wanted, [name for name in codes if len(name) > 2], n=1)
    known = ", ".join(f"{name} ({code})" for code, name in LANGUAGES.items())
    advice = f"did you mean {LANGUAGES[codes[near[0]]]} ({codes[near[0]]})?" if near else f"known are {known}"
    raise DataError(f"the language {language!r} is unknown: {advice}. For text in another one leave it out")
