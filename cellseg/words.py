"""Numbers with their nouns, as people write them."""


def counted(count: float, noun: str, *, plural: str = "") -> str:
    """Write a number with its noun: ``1 trial``, ``2 trials``, ``1,200 images``, ``0.5 GPUs``.

    Args:
        plural: where it is not ``noun`` with an s.
    """
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {noun if count == 1 else plural or f'{noun}s'}"
