"""The README's measured table is the committed CSV, and its links lead somewhere."""

import re
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_measured_table_is_the_csv():
    expected = pd.read_csv(ROOT / "figures" / "00_quickstart.csv")
    number = r"(-?[\d.]+)"
    rows = re.findall(rf"^\| (\w+) \| ([^|]+) \| {number} \| {number} \| {number} \|$", README, re.MULTILINE)
    assert len(rows) == len(expected)
    for (comparison, operation, *values), row in zip(rows, expected.itertuples(), strict=True):
        assert (comparison, operation.strip()) == (row.comparison, row.operation)
        measured = (row.snr_db, row.si_sdr_db, row.mss)
        for text, value in zip(values, measured, strict=True):
            assert float(text) == pytest.approx(value, abs=0.5 * 10 ** -len(text.partition(".")[2]) + 1e-9)


def test_comparison_is_the_csv():
    cells = pd.read_csv(ROOT / "figures" / "06_tables.csv").query("source == 'ours'")
    cells = cells.set_index(["model", "column"]).value
    columns = ["mix_snr", "mix_mss", "add_dec_snr", "add_dec_mss", "add_enc", "drums_si_sdr", "bass_si_sdr"]
    columns += ["other_si_sdr", "vocals_si_sdr", "hom_dec_snr", "hom_enc"]
    rows = re.findall(r"^\| (desk/[\w-]+) \| ([-\d.| ]+) \|$", README, re.MULTILINE)
    study = [
        "lin-cae-odd-sub",
        "lin-cae-odd",
        "lin-cae",
        "lin-cae-2",
        "no-homogeneity",
        "no-additivity",
        "m2l",
    ]
    assert [model for model, _ in rows] == [f"desk/{variant}" for variant in study]
    for model, values in rows:
        for column, text in zip(columns, values.split(" | "), strict=True):
            tolerance = 0.5 * 10 ** -len(text.partition(".")[2]) + 1e-9
            assert float(text) == pytest.approx(cells[model, column], abs=tolerance)


def test_ten_lines_are_the_csv():
    cells = pd.read_csv(ROOT / "figures" / "07_ten_lines.csv").set_index(["model", "name"]).value
    names = ["enc_homogeneity", "dec_homogeneity", "enc_additivity", "dec_additivity", "separation", "codec"]
    rows = re.findall(r"^\| (ten-lines/\w+) \| ([-\d.| ]+) \|$", README, re.MULTILINE)
    assert [model for model, _ in rows] == ["ten-lines/plain", "ten-lines/linear"]
    for model, values in rows:
        for name, text in zip(names, values.split(" | "), strict=True):
            assert float(text) == pytest.approx(cells[model, name], abs=0.05 + 1e-9)


def test_speed_is_the_csv():
    table = pd.read_csv(ROOT / "benchmarks" / "inference.csv")
    ratios = table.set_index(["name", "setting"]).ratio
    rows = re.findall(r"^\| (\d+ s), ([\w -]+) \| (fp32|bf16) \| ([-\d.| ]+) \|$", README, re.MULTILINE)
    assert rows
    for seconds, peer, precision, values in rows:
        measured = zip(("encode", "decode", "memory"), values.split(" | "), strict=True)
        for name, text in measured:
            expected = ratios.get((name, f"{precision} {seconds} vs {peer}"))
            if text == "-":
                assert expected is None
            else:
                assert float(text) == pytest.approx(expected, abs=0.05 + 1e-9)


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
