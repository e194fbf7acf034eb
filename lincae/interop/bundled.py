"""The checkpoints that ship with this package are what their cards say."""

import re
from pathlib import Path

from lincae.checkpoints import CARD, HASH_ROW
from lincae.machine.files import sha256_of

PACKAGE = Path(__file__).resolve().parent.parent
BUNDLED = PACKAGE.parent / "data" / "checkpoints"
"""The checkpoints that ship: in a clone they lie with the other data, in an installed package within it."""
if not BUNDLED.is_dir():
    BUNDLED = PACKAGE / "bundled"


def check_hash(path: Path, otherwise: str = "load the folder by its path to use it as it is") -> None:
    """Raises FileNotFoundError for a missing weights file; ValueError where its sha256 is not the one that
    the card beside it states, which also says what to do `otherwise`, if the file is not to be restored."""
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
