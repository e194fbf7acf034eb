"""The checkpoints that ship with this package are there, and are what their cards say."""

import re
from pathlib import Path

from lincae.checkpoints import BUNDLED, CARD, HASH_ROW, refuse_pointer
from lincae.files import sha256_of


def require_bundled() -> None:
    """Raises FileNotFoundError where this package was installed without the checkpoints that ship with it."""
    if not BUNDLED.is_dir():
        raise FileNotFoundError(
            f"this lincae has no bundled checkpoints: {BUNDLED} does not exist; reinstall it or run from a "
            "clone of its repository"
        )


def check_hash(path: Path, otherwise: str = "load the folder by its path to use it as it is") -> None:
    """Compare a weights file with the sha256 that the card beside it states.

    Raises FileNotFoundError for a missing file; ValueError where the two differ or no card states one, which
    also says what to do `otherwise`, if the file is not to be restored.
    """
    refuse_pointer(path)
    card = path.parent / CARD
    row = re.escape(HASH_ROW.format(path.name))
    text = card.read_text(errors="replace") if card.is_file() else ""
    stated = re.search(rf"{row} \| ([0-9a-f]{{64}})", text)
    found = sha256_of(path)
    if not stated or stated[1] != found:
        states = f"states {stated[1]}" if stated else "states none"
        raise ValueError(
            f"{path} has sha256 {found}, its card {CARD} {states}: the file was changed after it "
            f"was bundled; restore it (git checkout), or {otherwise}"
        )
