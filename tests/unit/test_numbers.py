"""Reading numbers as people write them, and finding the one that a completion gives as its answer."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.verifiers.numbers import read_number
from actors.verifiers.numeric import find_number

pytestmark = pytest.mark.unit

WRITTEN = {
    "5": r"5|+5|5.|(5)|[5]|**5**|`5`|$5$|\$5|US$5|5 USD|€5|x = 5|\approx 11 = 5|about 5|5 kg|5 apples|５|٥|5^\circ|5°|5%|5\%|5th|5\ \text{cm}^2",
    "-3": r"-3|- 3|−3|–3|－3|-$3|$-3|$- 3$|x = -3|\boldsymbol{-3}|-3.0",
    "1/2": r".5|0.50|1/2|1 / 2|½|\frac12|\frac{1}{2}|\frac1{2}|\dfrac{1}{2}|\tfrac12|\cfrac{1}{2}|1 \over 2|{1 \over 2}|1⁄2|\frac{1}{2} \text{ cup}|1.5/3",
    "-3/4": r"-3/4|-\frac{3}{4}|\frac{-3}{4}|- \frac34|−¾|-0.75",
    "7/2": r"3\frac{1}{2}|3 1/2|3½|3 ½|3.5|\frac72",
    "12": r"12 m^2|12 m²|12 \text{ m}^2|12\,\mathrm{cm}|12 km/h|12 m/s^2|12 square units|12^{\text{th}}",
    "100": r"1.0 \times 10^2|1.0×10²|1.0 \cdot 10^{2}|1e2|1E+2|10^2|10^{2}|10**2|10²|1000 \times 10^{-1}",
    "1234": r"1,234|1 234|1\,234|1{,}234|1\!,\!234|1'234|1’234",
    "2469/2": r"1.234,50|1,234.50|1 234,50|1234.5|$1,234.50",
    "1234567": r"1,234,567|1 234 567|12,34,567|1.234.567",
    "12000000": r"12 million|12,000,000|12 \text{ million}|$12 million",
}
NOT_ONE = r"""2\sqrt{3}|(1,2)|(1,234)|7, 8|7,8|12,34|5:30|3:5|\pm 2021|±5|3x|2 + 3i|5i|3\pi|2^{10}|5!|10^x|\sqrt{16}|5-3|3–5|1/2/3|1.2.3|
2023-05-01|x > 5|x \le 5|x \ne 5|x = 5, y = 7|x = 5 or x = 7|12 or 13|5 and 6|1011_2|\{5\}|\frac{\pi}{2}|1/0|12 and a half|2. Compute|12 - x|
\infty|0.\overline{3}|2 3|H2O|none||--|\frac{}{}|1e9999|at least 5""".replace("\n", "")


@pytest.mark.parametrize(
    ("value", "text"), [(value, text) for value, all_of in WRITTEN.items() for text in all_of.split("|")]
)
def test_a_number_is_read_however_it_is_written(value: str, text: str) -> None:
    assert read_number(text) == Fraction(value)
    assert find_number(f"Hence \\boxed{{{text}}} it is") == Fraction(value)


@pytest.mark.parametrize("text", NOT_ONE.split("|"))
def test_what_is_not_one_number_is_none(text: str) -> None:
    assert read_number(text) is None
    assert find_number(f"5 is not \\boxed{{{text}}}") is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is -3.", -3),
        ("10 - 4 = 6", 6),
        ("It costs $1,234,567.50 in all", Fraction("1234567.5")),
        ("7 apples and then #### 12 (not 13)", 12),
        ("#### 3\n#### 1,000", 1000),
        ("#### Step 2\nWe add 3 and 4 to get 7.", 7),
        ("#### 2. Compute\nThe total is 9", 9),
        ("#### Step 1\nso 5\n#### 18", 18),
        ("so \\boxed{17}, as 17 > 16", 17),
        ("\\boxed{no number} 5", None),
        ("\\boxed{5", 5),
        ("The answer is 12, because 5 of 7", 12),
        ("The answer is not 12 but 13.", 13),
        ("The answer is 12 or 13.", None),
        ("**Answer:** $12", 12),
        ("The final answer is $\\frac{1}{2}$. I hope it is correct.", Fraction(1, 2)),
        ("The answer is 5!", 5),
        ("The answer is 2\\sqrt{3}.", None),
        ("so it is $2\\sqrt{3}$", None),
        ("we get (1,2)", None),
        ("at 5:30", None),
        ("we get x^2", None),
        ("so f(12)", None),
        ("(so 12)", 12),
        ("The area is 12 m^2.", 12),
        ("as follows:\n- 3 apples", 3),
        ("x = - 3", -3),
        ("20 grams of CO2", 20),
        ("H2O", None),
        ("version 1.2.3", None),
        ("no number", None),
        ("", None),
    ],
)
def test_the_answer_of_a_completion(text: str, number: Fraction | int | None) -> None:
    assert find_number(text) == number


@given(st.integers(-(10**12), 10**12))
def test_integers_are_found_however_they_are_written(value: int) -> None:
    for written in (f"{value}", f"{value:,}", f"so {value}.", f"#### {value:,}", f"\\boxed{{{value}}}", f"{value}.0"):
        assert find_number(written) == value


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9))
def test_decimals_are_exact(value: object) -> None:
    assert find_number(f"about {value:,} euros") == Fraction(str(value))


@given(st.text(max_size=400) | st.text(r"0123456789\{}frac,.-/^ box=:#$", max_size=200))
def test_hostile_text_gives_a_number_or_none(text: str) -> None:
    assert find_number(text) is None or isinstance(find_number(text), Fraction)


@pytest.mark.parametrize(
    "piece",
    [
        "9",
        "\\frac{",
        "####",
        "#### 1",
        "the answer to ",
        "answer is ",
        "(",
        "\\boxed{",
        "- ",
        "1,",
        "1 ",
        "a-1",
        " ",
        "m ",
        "A",
        "{",
        "=",
        "\n",
    ],
)
def test_time_grows_with_the_length_of_a_completion_and_no_faster(piece: str) -> None:
    """Of 100,000 characters of one thing each takes under a second, where what grows with the square takes minutes."""
    text = piece * (100_000 // len(piece)) + "5"
    started = time.process_time()
    find_number(text)
    find_number("\\boxed{" + text + "}")
    assert time.process_time() - started < 5.0
