"""Which lines are sentences of their own, and which are parts of one wrapped paragraph."""

import random
import textwrap

import pytest

from lucid.preparation.sentences import split_sentences

PROSE = {
    "English": "The ship left the harbour before dawn, and nobody on the quay could say where it was bound, since the "
    "captain had spoken to no one but the pilot. It carried salt, timber and two passengers who kept to themselves.",
    "German": "Das Schiff verließ den Hafen noch vor der Morgendämmerung, und niemand am Kai konnte sagen, wohin die "
    "Reise ging, weil der Kapitän nur mit dem Lotsen gesprochen hatte. Es trug Salz, Holz und zwei stille Reisende.",
    "French": "Le navire quitta le port avant l'aube, et personne sur le quai ne put dire où il allait, car le "
    "capitaine n'avait parlé qu'au pilote. Il portait du sel, du bois et deux passagers qui restaient à l'écart.",
    "Russian": "Корабль покинул гавань до рассвета, и никто на причале не мог сказать, куда он направлялся, потому что "
    "капитан говорил только с лоцманом. Он вёз соль, лес и двух пассажиров, которые держались в стороне.",
}
CHINESE = (
    "船在天亮之前离开了港口码头上没有人知道它要去哪里因为船长只和领航员说过"
    "话它载着盐木材和两位沉默的旅客航行了整整三十天以后才在远方的一个小岛靠岸"
)
LINES = {
    "captions": [
        "a dog runs along the beach",
        "two men on a bench",
        "the red bus waits at the corner of a busy street",
    ],
    "captions with names": ["a photo of Paris at night", "the Eiffel tower", "a view of the river Seine from a boat"],
    "captions that differ little": [f"the brown dog number {number} jumps over it" for number in range(12)],
    "capitals": ["A dog runs along the beach", "Two men sit on a bench in the park", "Night", "The red bus"],
    "k-mers": [" ".join("acgtac" for _ in range(12))] * 6,
    "words": ["apple", "banana", "cherry", "fig"],
    "numbers": ["12 34 56", "78 90", "12", "34"],
    "poem": ["the fog crept over", "the roofs and the river", "and the lamps of the square", "went out"],
    "verses": ["床前明月光", "疑是地上霜", "举头望明月", "低头思故乡"],
    "Chinese": ["小狗在海滩上奔跑", "两个男人坐在公园的长椅上看着远处的湖面", "红色的公共汽车停在街角等待乘客"],
    "log": [f"2024-05-0{day} 12:00:0{day} INFO served {day * 97} requests" for day in range(1, 8)],
    "source": ["def area(width, height):", "if width < 0:", "raise ValueError(width)", "return width * height"],
    "list": ["- milk from the shop at the corner", "- bread", "- eggs, a dozen of them if they are fresh"],
    "addresses": [f"https://example.org/{'page' * number}" for number in range(1, 9)],
    "table": ["| name | price |", "| salt | 12 |", "| a longer name of a thing | 3 |"],
}


@pytest.mark.parametrize("width", [36, 60, 78, 100])
@pytest.mark.parametrize("language", PROSE)
@pytest.mark.parametrize("lower", [False, True])
def test_wrapped_prose_is_joined(language: str, width: int, lower: bool) -> None:
    text = PROSE[language].lower() if lower else PROSE[language]
    wrapped = "\n".join(textwrap.wrap(text, width))
    assert list(split_sentences(f"{wrapped}\n\n{wrapped}")) == list(split_sentences(f"{text}\n\n{text}"))


@pytest.mark.parametrize("width", [20, 40])
def test_wrapped_text_without_spaces_is_joined(width: int) -> None:
    lines = [CHINESE[start : start + width] for start in range(0, len(CHINESE), width)]
    if len(lines) > 2:
        assert list(split_sentences("\n".join(lines))) == [CHINESE]


def test_lines_are_joined_with_the_spaces_that_the_script_has() -> None:
    japanese = (
        "パッケージを保留しておく方法と、Debian のパッケージを自分で作成する方法を\n"
        "ここで説明します。また、依存関係を示す Depends、\n"
        "Suggests や Conflicts の意味と、それらを 使うときに注意すべきこと、\n"
        "さらに（これは重要ですが）古い版から移る手順を示します。"
    )
    assert "".join(split_sentences(japanese)) == japanese.replace("\n", "")
    korean = "후원자의 기부를 통해 데비안은 기계 뿐만 아니라 다른 하드웨어와 조직\n회의를 할 수 있습니다."
    assert list(split_sentences(korean)) == [korean.replace("\n", " ")]


def test_thai_lines_that_end_at_a_space_keep_it() -> None:
    full, early = "ผู้ใดจะจับไปใช้สอยต้องขออนุญาตต่อรัฐบาลและต้องแบ่งช้างที่จับได้", "ให้เป็นช้างหัวป่าสำหรับใช้ราชการแผ่นดิน"
    joined = " ".join(
        split_sentences("\n".join([full, full, early, "จึงจะจับช้างป่าไปใช้สอยได้และถ้าผู้ใดทำอันตราย", full + "。"]))
    )
    assert f"{full}{full}" in joined
    assert f"{early} จึงจะ" in joined


@pytest.mark.parametrize("script", ["Chinese", "Hindi"])
def test_a_list_without_capitals_stays_one_with_a_latin_name_in_it(script: str) -> None:
    lines = {
        "Chinese": [
            "小狗在海滩上奔跑追着一只红色的球跑",
            "Debian 的用户坐在公园的长椅上看书",
            "红色的公共汽车停在街角等待乘客上车",
        ],
        "Hindi": ["लाल बस सड़क के कोने पर रुकी है", "Debian के लोग बेंच पर बैठे हैं", "एक कुत्ता समुद्र तट पर दौड़ता है"],
    }[script]
    assert list(split_sentences("\n".join(lines))) == lines


def test_text_wrapped_by_hand_is_joined() -> None:
    text = "It was late when they arrived, and the inn\nhad been closed for an hour,\nso they slept in the barn."
    assert list(split_sentences(text)) == [text.replace("\n", " ")]


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\x85", "\u2028"])
def test_a_line_that_is_no_part_of_wrapped_text_is_a_sentence(kind: str, end: str) -> None:
    assert list(split_sentences(end.join(LINES[kind]))) == LINES[kind]


def test_lower_case_lines_of_any_length_are_sentences() -> None:
    draw = random.Random(1)
    words = [
        "the",
        "of",
        "salt",
        "timber",
        "harbour",
        "captain",
        "sailed",
        "a",
        "and",
        "two",
        "nobody",
        "in",
        "passengers",
    ]
    for shortest, longest in ((4, 14), (8, 8), (5, 7)):
        documents = [
            [" ".join(draw.choices(words, k=draw.randint(shortest, longest))) for _ in range(10)] for _ in range(76)
        ]
        found = [list(split_sentences("\n".join(lines))) for lines in documents]
        assert found == documents


def test_lines_without_letters_are_read_in_time_that_grows_with_them() -> None:
    assert len(list(split_sentences("1\n" * 200_000))) == 200_000
