"""Makes `tokenizers.json`: the ids that transformers' BertTokenizerFast gives for text in many scripts.

    python tests/golden/make_tokenizers.py

rewrites it beside this script, the same with the same versions. Needs transformers, but no torch. The file holds

- `versions`: of transformers and tokenizers,
- `texts`: text in more than twenty scripts, with emoji, combining and zero-width characters, and long words,
- `vocabulary`: a made-up vocabulary of pieces of these texts, in order,
- `kinds`: for each of the eight kinds (cased or not, accents kept or not, Chinese characters split or not) the `ids`
  of each text, and what `save_pretrained` writes: `tokenizer_config.json`, and `tokenizer.json` without its vocabulary.
"""

import json
import tempfile
from itertools import product
from pathlib import Path

import tokenizers
import transformers
from tokenizers import normalizers, pre_tokenizers

HERE = Path(__file__).parent
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SETTINGS = "do_lower_case", "strip_accents", "tokenize_chinese_chars"
# The first articles of the Universal Declaration of Human Rights, and the like.
TEXTS = [
    # Latin, with many kinds of marks
    "All human beings are born free and equal in dignity and rights: they're endowed with reason, and so on...",
    "Alle Menschen sind frei und gleich an Würde geboren. ÄPFEL, Straße, möchte; NAÏVE façade œuvre.",
    "Tất cả mọi người sinh ra đều được tự do. İstanbul'da ILIK ıhlamur; Łódź, Đorđe, ŧåþ.",
    # Greek, Cyrillic, Armenian, Georgian
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι. ΟΔΥΣΣΕΥΣ",
    "Все люди рождаются свободными и равными; Ёлка, Йод, їжак, Љубав.",
    "Բոլոր մարդիկ ծնվում են ազատ ու հավասար։ Եւ",
    "ყველა ადამიანი იბადება თავისუფალი. ᲧᲕᲔᲚᲐ",
    # Hebrew, Arabic, Persian, Syriac
    "כל בני האדם נולדו בני חורין. בְּרֵאשִׁית",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. مُحَمَّدٌ ١٢٣",
    "تمام افراد بشر آزاد به دنیا می‌آیند، ۴۵۶ کتاب‌ها؟",
    "ܟܠ ܒܪܢܫܐ ܒܪܝܠܗ ܚܐܪܐ",
    # Devanagari, Bengali, Tamil, Telugu, Sinhala
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में स्वतन्त्रता प्राप्त है। क्‍ष",
    "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা নিয়ে জন্মগ্রহণ করে। ড়",
    "மனிதப் பிறவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்.",
    "ప్రతిపత్తిస్వత్వముల విషయమున మానవులెల్లరును స్వతంత్రులుగనే జన్మించిరి",
    "සියලු මනුෂ්‍යයෝ නිදහස්ව උපත ලබා ඇත.",
    # Thai, Lao, Khmer, Burmese, Tibetan
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกัน น้ำใจ",
    "ມະນຸດເກີດມາມີສິດເສລີພາບ ແລະສະເໝີໜ້າກັນ",
    "មនុស្សទាំងអស់ កើតមកមានសេរីភាព និងសមភាព។",
    "လူတိုင်းသည် တူညီလွတ်လပ်သော ဂုဏ်သိက္ခာဖြင့် မွေးဖွားသည်။",
    "འགྲོ་བ་མིའི་རིགས་རྒྱུད་ཡོངས་ལ་སྐྱེས་ཙམ་ཉིད་ནས།",
    # Ethiopic, Cherokee, Mongolian
    "የሰው ልጅ ሁሉ ሲወለድ ነጻና በክብርም እኩል ነው።",
    "Ꭱꮀꭲ ᎣᎦᎸᎳᏗ ꭰꮒᏼꮻ",
    "ᠬᠦᠮᠦᠨ ᠪᠦᠷ ᠲᠥᠷᠥᠵᠦ",
    # Chinese, Japanese, Korean, and both at once
    "人人生而自由，在尊嚴和權利上一律平等。㐀 𠀀𠮷 豈 〇",
    "すべての人間は、生まれながらにして自由であり、ｶﾞｷﾞ ガギ パン「引用」ー々",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. ㄱㅏ 한글",
    "BERT是2018年的model，ＡＢＣ１２３！x雲y",
    # Emoji, symbols, combining and zero-width characters, odd spaces, controls
    "🙂 a🙂b 👩‍👩‍👧‍👦 🇩🇪 ❤️ ☺︎ 1️⃣ ™ ℃ ½ ﬁ Ⅷ ∑x² €5 №",
    "e\u0301 é n\u0303o a\u0300\u0323 \u0301x z\u0338 \u1100\u1161\u11a8",
    "zero\u200bwidth\u200cjoin\u200ders\ufeff soft\u00adhyphen \u202eright\u202c \u2060word",
    "a\u00a0b\u2003c\u3000d\te\u000bf\u2028g\u0085h \ufffd i\u0000j\u0007k\u001f l",
    "don't well-known e.g. 3,14 $5.00 C++ a_b [x] {y} <z> ~`^| «q» “r” – — … ¿s? ¡t!",
    "The [MASK] and [UNK] of it",
    # Long words
    "x" * 100 + " " + "x" * 101 + " " + "é" * 100 + " " + "雲" * 101 + " " + "한" * 60 + " " + "กา" * 51,
    "",
    " \n ",
]


def main() -> None:
    vocabulary = pieces_of(TEXTS)
    kinds = {}
    for values in product((True, False), repeat=3):
        settings = dict(zip(SETTINGS, values, strict=True))
        kinds[" ".join(f"{name}={value}" for name, value in settings.items())] = kind_of(vocabulary, settings)
    content = {
        "versions": {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__},
        "texts": TEXTS,
        "vocabulary": vocabulary,
        "kinds": kinds,
    }
    lines = json.dumps(content, ensure_ascii=True, indent=None, separators=(",", ":"))
    (HERE / "tokenizers.json").write_text(lines.replace('"do_lower_case=', '\n"do_lower_case=') + "\n")


def pieces_of(texts: list[str]) -> list[str]:
    """Return special tokens, most characters of the texts in all normal forms, and the halves of many words."""
    characters, halves = set(), set()
    for lowercase, strip_accents, chinese in product((True, False), repeat=3):
        normalizer = normalizers.BertNormalizer(True, chinese, strip_accents, lowercase)
        for text in texts:
            for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normalizer.normalize_str(text)):
                characters.update(word)
                if len(word) < 40 and sum(map(ord, word)) % 3:
                    halves |= {word[: len(word) // 2 + 1], f"##{word[len(word) // 2 + 1 :]}"}
    known = [character for character in sorted(characters) if ord(character) % 17]
    pieces = {*known, *(f"##{character}" for character in known), *halves} - {"##"}
    return [*SPECIAL, *sorted(pieces)]


def kind_of(vocabulary: list[str], settings: dict[str, bool]) -> dict[str, object]:
    """Return the ids of the texts with these settings, and the files that transformers saves."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary), encoding="utf-8")
        tokenizer = transformers.BertTokenizerFast.from_pretrained(folder, **settings)
        saved = path / "saved"
        tokenizer.save_pretrained(saved)
        files = {name: json.loads((saved / name).read_text()) for name in ("tokenizer_config.json", "tokenizer.json")}
        files["tokenizer.json"]["model"]["vocab"] = {}
        return {"ids": [tokenizer(text).input_ids for text in TEXTS], **files}


if __name__ == "__main__":
    main()
