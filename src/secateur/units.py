"""Sizes for people."""


def size_text(size: int | float) -> str:
    """Bytes in the unit that leaves few digits: 312 kB, 1.4 MB, 26 GB.

    As the disk's maker counts, in powers of ten.
    """
    value, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    digits = 1 if value < 10 and unit != "bytes" else 0
    return f"{value:,.{digits}f} {unit}"
