"""README and docs: every Python block runs as it stands, tables are committed CSVs, links lead somewhere."""

import re
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def page(name: str) -> str:
    return (ROOT / name).read_text()


def blocks(path: Path) -> str:
    """The Python of a page, with blank lines in the place of its prose, so that errors name its lines."""
    lines, inside = [], False
    for line in path.read_text().splitlines():
        fence = line.startswith("```")
        lines.append(line if inside and not fence else "")
        if fence:
            inside = line == "```python"
    return "\n".join(lines)


WITH_PYTHON = [path for path in PAGES if blocks(path).strip()]


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_PYTHON, ids=lambda path: path.stem)
def test_python_runs_as_it_stands(path, tmp_path, monkeypatch, few_songs):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")
    exec(compile(blocks(path), path.name, "exec"), {"__name__": "__main__"})


def test_pages_with_python_are_found():
    assert {path.stem for path in WITH_PYTHON} >= {"README", "training", "inference", "latents", "evaluation"}


def test_readme_is_one_page():
    text = page("README.md")
    assert len(text.splitlines()) <= 150
    assert len(text.encode()) <= 8192


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#]+)(?:#[\w-]*)?\)", path.read_text())
    local = [link for link in links if "://" not in link]
    assert local
    assert [link for link in local if not (path.parent / link).exists()] == []


def rows_of(text: str, key: str) -> list[tuple[str, list[str]]]:
    """Rows `| key | number | ... |` of a page's tables, as (key, numbers)."""
    found = re.findall(rf"^\| ({key}) \| ([-\d.| ]+) \|$", text, re.MULTILINE)
    return [(name, numbers.split(" | ")) for name, numbers in found]


def rounds_to(value: float, text: str) -> bool:
    decimals = len(text.partition(".")[2])
    return abs(float(text) - value) <= 0.5 * 10**-decimals + 1e-9


def misquoted(values: pd.Series, rows: list[tuple[str, list[str]]], columns: list[str]) -> list:
    """Cells of a page's table that are not the rounded value."""
    found = []
    for model, numbers in rows:
        for column, number in zip(columns, numbers, strict=True):
            if not rounds_to(values[model, column], number):
                found.append((model, column, number))
    return found


COLUMNS = ["mix_snr", "mix_mss", "add_dec_snr", "add_enc", "separation", "hom_dec_snr", "hom_enc"]


@pytest.mark.parametrize(
    ("start", "end", "folder", "separation", "models"),
    [
        ("The table that", "At 32x", ".", "vocals_si_sdr", {"desk/m2l", "desk/lin-cae", "pca-8x"}),
        ("At 32x", "Two commands", "06_pairs_32x", "separation_si_sdr", {"study/m2l", "study/lin-cae"}),
    ],
)
def test_tables_of_the_readme_are_the_csv(start, end, folder, separation, models):
    cells, own = (pd.read_csv(ROOT / "figures" / folder / f"06_{name}.csv") for name in ("tables", "own"))
    cells = pd.concat([cells.query("source == 'ours'"), own]).replace({"column": {separation: "separation"}})
    values = cells.drop_duplicates(["model", "column"]).set_index(["model", "column"]).value
    rows = rows_of(page("README.md").partition(start)[2].partition(end)[0], r"[\w/+-]+")
    assert models <= {model for model, _ in rows}
    assert misquoted(values, rows, COLUMNS) == []


def test_ten_lines_are_the_csv():
    values = pd.read_csv(ROOT / "figures" / "07_ten_lines.csv").set_index(["model", "name"]).value
    names = ["enc_homogeneity", "dec_homogeneity", "enc_additivity", "dec_additivity", "separation", "codec"]
    rows = rows_of(page("docs/evaluation.md"), r"ten-lines/\w+")
    assert [model for model, _ in rows] == ["ten-lines/plain", "ten-lines/linear"]
    assert misquoted(values, rows, names) == []


def test_speed_is_the_csv():
    ratios = pd.read_csv(ROOT / "benchmarks" / "inference.csv").set_index(["name", "setting"]).ratio
    rows = rows_of(page("docs/inference.md"), r"\d+ s, [\w -]+ \| (?:fp32|bf16)")
    assert rows
    for key, numbers in rows:
        setting, _, precision = key.partition(" | ")
        seconds, _, peer = setting.partition(", ")
        for name, number in zip(("encode", "decode", "memory"), numbers, strict=True):
            assert rounds_to(ratios[name, f"{precision} {seconds} vs {peer}"], number), (key, name)
