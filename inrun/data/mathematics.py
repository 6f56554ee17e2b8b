"""School mathematics with right answers, as many questions as wanted: the offline corpus' stand-in
for DM Mathematics.

Every question is drawn from a generator that is seeded by (seed, document number); the answer is
computed exactly, in integers or fractions.
"""

import math
import random
from collections.abc import Iterator
from fractions import Fraction

QUESTIONS_PER_DOCUMENT = 24


def mathematics(seed: int) -> Iterator[str]:
    """An endless row of documents, each of 24 questions with their answers, one per line."""
    number = 0
    while True:
        rng = random.Random(f"mathematics {seed} {number}")
        ask = rng.choice(TOPICS)
        yield "\n".join(ask(rng) for _ in range(QUESTIONS_PER_DOCUMENT)) + "\n"
        number += 1


def _arithmetic(rng: random.Random) -> str:
    a, b = _signed(rng, 5), _signed(rng, 5)
    sign, value = rng.choice([("+", a + b), ("-", a - b), ("*", a * b)])
    return f"Calculate {a} {sign} {_bracket(b)}.\n{value}"


def _division(rng: random.Random) -> str:
    a, b = _signed(rng, 4), _positive(rng, 3)
    return f"What is {a} divided by {b}, as a fraction in lowest terms?\n{Fraction(a, b)}"


def _remainder(rng: random.Random) -> str:
    a, b = _positive(rng, 6), rng.randint(2, 999)
    return f"Calculate the remainder when {a} is divided by {b}.\n{a % b}"


def _common_divisor(rng: random.Random) -> str:
    factor = rng.randint(2, 60)
    a, b = factor * rng.randint(2, 400), factor * rng.randint(2, 400)
    return f"Calculate the greatest common divisor of {a} and {b}.\n{math.gcd(a, b)}"


def _linear(rng: random.Random) -> str:
    x, slope, shift = (
        rng.randint(-50, 50),
        rng.choice([-1, 1]) * rng.randint(2, 40),
        _signed(rng, 3),
    )
    letter = rng.choice("abdghkmnpqrstuvwxyz")
    return f"Solve {slope}*{letter} {_plus(shift)} = {slope * x + shift} for {letter}.\n{x}"


def _derivative(rng: random.Random) -> str:
    letter, powers = (
        rng.choice("abdghkmnpqrstuvwxyz"),
        sorted(rng.sample(range(2, 7), 3), reverse=True),
    )
    terms = [(rng.choice([-1, 1]) * rng.randint(1, 99), power) for power in powers]
    slope = [(factor * power, power - 1) for factor, power in terms]
    return (
        f"What is the derivative of {_sum(terms, letter)} with respect to "
        f"{letter}?\n{_sum(slope, letter)}"
    )


def _sequence(rng: random.Random) -> str:
    start, step, bend = rng.randint(-300, 300), rng.randint(-40, 40), rng.randint(-3, 3)
    values = [start + step * k + bend * k * k for k in range(7)]
    return f"What is next in {', '.join(map(str, values[:-1]))}?\n{values[-1]}"


def _base(rng: random.Random) -> str:
    value, base = _positive(rng, 4), rng.randint(2, 12)
    digits, rest = "", value
    while rest:
        rest, digit = divmod(rest, base)
        digits = "0123456789ab"[digit] + digits
    return f"Write {value} in base {base}.\n{digits}"


def _prime(rng: random.Random) -> str:
    value = rng.randint(2, 9999)
    is_prime = all(value % divisor for divisor in range(2, math.isqrt(value) + 1))
    return f"Is {value} a prime number?\n{is_prime}"


TOPICS = (
    _arithmetic,
    _division,
    _remainder,
    _common_divisor,
    _linear,
    _derivative,
    _sequence,
    _base,
    _prime,
)


def _positive(rng: random.Random, digits: int) -> int:
    return rng.randint(1, 10 ** rng.randint(1, digits) - 1)


def _signed(rng: random.Random, digits: int) -> int:
    return rng.choice([-1, 1]) * _positive(rng, digits)


def _bracket(value: int) -> str:
    return f"({value})" if value < 0 else str(value)


def _plus(value: int) -> str:
    return f"- {-value}" if value < 0 else f"+ {value}"


def _sum(terms: list[tuple[int, int]], letter: str) -> str:
    written = ""
    for factor, power in terms:
        sign = ("-" if factor < 0 else "") if not written else (" - " if factor < 0 else " + ")
        written += f"{sign}{abs(factor)}*{letter}" + (f"**{power}" if power > 1 else "")
    return written
