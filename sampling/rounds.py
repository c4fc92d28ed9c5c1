"""A video that is made round after round: how many rounds there are, what each continues, and how they are joined."""

from torch import Tensor

from .clips import check_same_size, join


def start_frames(length: int, round_length: int, overlap: int) -> list[int]:
    """How many frames each round of a long video continues, for as many rounds as it has.

    All rounds have ``round_length`` frames. They begin with ``overlap`` known frames, the last one with more of them
    where less is left to add. So every ``length`` is possible, and a longer video has the same first rounds.

    Args:
        length: frames of the whole video.
        round_length: frames of a round.
        overlap: frames that a round shares with the one before. The first round begins with as many frames of a clip.

    Raises:
        ValueError: a round adds nothing, or the video is shorter than a round.
    """
    if not 1 <= overlap < round_length:
        raise ValueError(
            f"overlap is {overlap} frames, expected 1 to {round_length - 1}: a round has {round_length} frames and "
            "must add some"
        )
    if length < round_length:
        raise ValueError(
            f"length is {length} frames, shorter than one round of {round_length}: set length to {round_length} or "
            "more, or make round_length smaller"
        )
    added = round_length - overlap
    more = -(-(length - round_length) // added)
    surplus = round_length + more * added - length
    return [overlap] * more + [overlap + surplus]


def prompt_lines(prompt: str, line_per_round: bool) -> list[str]:
    """The prompts of the rounds, at least one. Empty lines don't count. Later rounds have the last one."""
    lines = [line.strip() for line in prompt.splitlines() if line.strip()] if line_per_round else [prompt]
    return lines or [""]


def summary(length: int, round_length: int, starts: list[int], lines: int) -> str:
    """The rounds of a long video in words, to show under the node; ``lines`` of the prompt."""
    count, added = len(starts), round_length - starts[-1]
    text = f"{length} frames: {count} round{'s'[: count != 1]} of {round_length}"
    if count > 1 and starts[-1] != starts[0]:
        text += f", the last one adds {added}"
    if lines > count:
        unused = lines - count
        text += f"; the last {unused} of {lines} prompt lines {'is' if unused == 1 else 'are'} not used"
    return text


def join_rounds(rounds: list[Tensor], overlap: int, length: int) -> Tensor:
    """One video of all rounds, blended where two show the same. Beside it, one round is copied at a time.

    Args:
        rounds: F H W 3 each, of the same size, in order.
        overlap: frames that two rounds share.
        length: frames of the video. If the rounds have more, the last round starts earlier.

    Returns:
        [length, H, W, 3].

    Raises:
        ValueError: they differ in size, or are not that long together.
    """
    for made in rounds[1:]:
        check_same_size(rounds[0], made, "the first round", "another one")
    surplus = sum(map(len, rounds)) - (len(rounds) - 1) * overlap - length
    most = len(rounds[-1]) - (overlap if len(rounds) > 1 else 1)
    if not 0 <= surplus <= most or overlap >= min(map(len, rounds)):
        raise ValueError(
            f"{len(rounds)} rounds of {listed_lengths(rounds)} frames with an overlap of {overlap} don't make a video "
            f"of {length} frames: set length to {length + surplus}, and overlap to less than a round has"
        )
    parts = [*rounds[:-1], rounds[-1][surplus:]]
    video = rounds[0].new_empty(length, *rounds[0].shape[1:])
    end = 0
    for part in parts:
        shared = overlap if end else 0
        begin, end = end - shared, end - shared + len(part)
        video[begin:end] = join(video[begin : begin + shared], part, shared)
    return video


def listed_lengths(rounds: list[Tensor]) -> str:
    return ", ".join(map(str, sorted({len(made) for made in rounds})))
