"""Splitting text into sentences."""

import pytest

from lucid.preparation.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One is here. Two is there! Is three?", ["One is here.", "Two is there!", "Is three?"]),
        ("Dr. Smith paid 3.50 for it. He left.", ["Dr. Smith paid 3.50 for it.", "He left."]),
        ("A heading\n\nA sentence.", ["A heading", "A sentence."]),
        ("A sentence that was wrapped in the middle\nof its words, as is usual.", None),
        ("A sentence wrapped just before a\nCapital letter, as the word\nwould not have fitted.", None),
        ("- milk\n- bread and butter\n* eggs", ["- milk", "- bread and butter", "* eggs"]),
        ("History\nThe town was founded in a year.", ["History", "The town was founded in a year."]),
        ("Do this:\n\n1. Sit down.\n2. Stand up.", ["Do this:", "1. Sit down.", "2. Stand up."]),
        ("", []),
        (" \n\n\t\n", []),
        ("1.", ["1."]),
    ],
)  # fmt: skip
def test_text_is_split_at_punctuation_and_layout(text: str, sentences: list[str] | None) -> None:
    assert list(split_sentences(text)) == ([" ".join(text.split())] if sentences is None else sentences)


def test_in_unwrapped_text_each_line_is_a_paragraph() -> None:
    line = "A paragraph of many words that somebody wrote on a single line " * 3
    assert len(list(split_sentences(f"{line}\n{line}"))) == 2


# A slash stands between sentences.
SENTENCES = {
    "Chinese": "他说：“你好！”/然后走了。/『真的。』/她说。/第2.5版（2021年）已发布。/是吗？",
    "Japanese": "彼は「こんにちは。」と言った。/本当ですか？/はい！/「もう行くって。」って聞いた。/半角です｡/おわり。",
    "Korean": "이것은 문장입니다. /두 번째입니다! /맞나요?",
    "Hindi": "यह एक वाक्य है। /यह दूसरा है॥ /क्या यह तीसरा है?",
    "Hindi without spaces": "यह एक वाक्य है।/यह दूसरा है।",
    "Arabic": "هذه جملة. /هل هذا سؤال؟ /قال: «نعم.» /ثم ذهب؛ وعاد بعد 3.5 ساعات.",
    "Urdu": "یہ ایک جملہ ہے۔ /کیا یہ سوال ہے؟ /ہاں۔",
    "Persian": "این یک جمله است. /آیا این سؤال است؟ /بله!",
    "Burmese": "ဒါက စာကြောင်းတစ်ခု ဖြစ်သည်။ /နောက်တစ်ခု၊ ဖြစ်သည်။",
    "Khmer": "នេះជាប្រយោគ។ /តើនេះជាសំណួរឬ? /មានឆ្មា ឆ្កែ។ល។ និងគោ។ /បាទ៕",
    "Armenian": "Սա նախադասություն է։ /Սա երկրորդն է։",
    "Amharic": "ይህ ዓረፍተ ነገር ነው። /ይህ ሁለተኛው ነው።",
    "Greek": "Τι κάνεις; /Καλά είμαι. /Ποιος είναι; ρώτησε. /Αυτός· εκείνος.",
    "English with Greek": "The values α; Beta and β; gamma are given. /They differ.",
}  # fmt: skip


@pytest.mark.parametrize("language", ["en", "de"])
@pytest.mark.parametrize("text", SENTENCES.values(), ids=SENTENCES)
def test_sentences_end_at_the_marks_of_their_script_whatever_the_language(text: str, language: str) -> None:
    assert list(split_sentences(text.replace("/", ""), language)) == [part.strip() for part in text.split("/")]


def test_thai_and_tibetan_are_split_into_parts_as_long_as_sentences() -> None:
    """Thai has spaces between clauses and around names; the mark of Tibetan ends clauses and sentences."""
    rain, walk = "เมื่อวานนี้ฝนตกหนักมากทำให้น้ำท่วมถนนหลายสายในกรุงเทพมหานคร รถจึงติดมาก", "นายสมชาย ใจดี ต้องเดินกลับบ้านในตอนเย็น"
    assert list(split_sentences(f"{rain} {walk}")) == [rain, walk]
    for clause in ("รถจึงติดมากในเมืองหลวงวันนี้ ", "ລົດຈຶ່ງຕິດຫຼາຍໃນນະຄອນຫຼວງມື້ນີ້ ", "འགྲེལ་བཤད་འབདཝ་ཨིན། "):
        text = clause * 50
        sentences = list(split_sentences(text))
        assert " ".join(sentences) == text.strip()
        assert all(60 <= len(sentence) < 60 + len(clause) for sentence in sentences[:-1])
    names = "ร้านนี้ขาย ข้าว แกง ขนม ผลไม้ และน้ำ"
    assert list(split_sentences(names)) == [names]


def test_a_script_without_spaces_and_marks_is_split_in_time_that_grows_with_it() -> None:
    for character in "กཀ字":
        assert list(split_sentences(character * 500_000)) == [character * 500_000]


def test_the_language_determines_the_abbreviations() -> None:
    text = "Am 3. Mai kam er. Dann ging er."
    assert list(split_sentences(text, "de")) == ["Am 3. Mai kam er.", "Dann ging er."]
    assert len(list(split_sentences(text, "en"))) == 3


def test_no_word_is_lost() -> None:
    text = "Alpha beta (gamma. Delta) 12 epsilon\n\n  zeta: 3. eta\n  theta\n\n4.\n"
    assert " ".join(split_sentences(text)).split() == text.split()
