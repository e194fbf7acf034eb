"""The committed notebooks, executed with small values: the same cells as `make reproduce` runs."""

import ast
import contextlib
import dataclasses
import json
import re
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import papermill
import pytest
import torch
from browser import Watched
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from matplotlib.image import imread
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from traitlets.config import Config

import lincae
from lincae.data import crops
from lincae.data.audio import write_audio
from lincae.evaluation import tables
from lincae.evaluation.notebook import check_parameters
from lincae.evaluation.protocols import EvaluationConfig
from lincae.latents.store import describe
from lincae.reencoder.linear import LinearConfig, LinearPair
from lincae.reencoder.module import ReEncoder, ReEncoderConfig

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
COMMON = ("models", "dataset", "n_tracks", "seconds", "seed", "device", "out_dir")


@pytest.fixture(autouse=True)
def little_to_do(few_songs, monkeypatch):
    """Two short songs, and windows of half a second, which are a quarter of the network's work."""
    little = {"window_s": 0.5, "overlap_s": 0.125, "gains": (-1.0, 0.5)}
    defaults = [little.get(field.name, field.default) for field in dataclasses.fields(EvaluationConfig)]
    monkeypatch.setattr(EvaluationConfig.__init__, "__defaults__", tuple(defaults))


def execute(name: str, folder: Path, cwd: Path = ROOT / "notebooks", **parameters) -> None:
    """Run the cells that papermill would run, in this process: kernels start and import for seconds each."""
    path = ROOT / "notebooks" / f"{name}.ipynb"
    given = {"device": "cpu", "out_dir": str(folder)} | parameters
    cells = parameterize_notebook(load_notebook_node(str(path)), given).cells
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"hist_file": ":memory:"}}))
    surroundings = contextlib.chdir(cwd), plt.rc_context(), warnings.catch_warnings(), capture_output()
    try:
        with contextlib.ExitStack() as stack:
            for surrounding in surroundings:
                stack.enter_context(surrounding)
            for cell in cells:
                if cell.cell_type == "code":
                    shell.run_cell(cell.source, store_history=True).raise_error()
    finally:
        plt.close("all")
        shell.restore_sys_module_state()  # __main__ is that of the tests again
        InteractiveShell.clear_instance()


def code_cells(path: Path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_house_rules(path):
    cells = code_cells(path)
    sources = [cell.source for cell in cells]
    assert tuple(papermill.inspect_notebook(str(path)))[:7] == COMMON
    tagged = [cell.metadata.get("tags") == ["parameters"] for cell in cells].index(True)
    assert "check_parameters()" in sources[tagged + 1]
    assert max(len(source.splitlines()) for source in sources) <= 30
    assert not any(word in source for source in sources for word in ("class ", "try:"))
    # No training loops but one: what users of lincae.linearity add to theirs, shown and executed as it is.
    loops = [cell for cell in cells if ".backward(" in cell.source]
    assert [cell.metadata.tags for cell in loops] == [["training-loop"]] * (path.stem == "07_any_autoencoder")
    assert path.stat().st_size < 800_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_outputs_are_one_clean_run(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    text = path.read_text()
    assert '"output_type": "error"' not in text
    assert "base64,SUQz" not in text
    assert "data:audio" not in text
    displayed = [output for cell in cells for output in cell.outputs if "data" in output]
    for output in displayed:
        pictures = [mime for mime in output.data if mime.startswith("image/")]
        assert all(output.metadata.get(mime, {}).get("alt") for mime in pictures), "a picture without alt"
    metadata = json.loads(text)["metadata"]
    assert "papermill" not in metadata
    assert "widgets" not in metadata


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_figure_has_its_numbers(path):
    number = path.stem[:2]
    figures = sorted((ROOT / "figures").glob(f"{number}_*.png"))
    assert figures
    for figure in figures:
        assert not pd.read_csv(figure.with_suffix(".csv")).empty
        assert imread(figure).std() > 0.01, f"{figure.name} is blank"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_figure_is_described(path):
    calls = [node for cell in code_cells(path) for node in ast.walk(ast.parse(cell.source))]
    saved = [node for node in calls if isinstance(node, ast.Call) and ast.unparse(node.func) == "plots.save"]
    assert saved
    assert all(len(call.args) == 5 for call in saved), "plots.save(figure, numbers, name, out_dir, alt)"


@pytest.fixture(scope="module")
def pages(chromium, tmp_path_factory):
    """Notebooks as `make pages` makes them, without scripts (they lie elsewhere), at 1,100 px."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="page", extra_template_basedirs=[str(ROOT / "tools")])
    folder = tmp_path_factory.mktemp("pages")
    (folder / "figures").symlink_to(ROOT / "figures")
    (folder / "notebooks").mkdir()
    shown = Watched(chromium, {"width": 1100, "height": 900})

    def visit(path: Path):
        page = folder / "notebooks" / f"{path.stem}.html"
        html, _ = exporter.from_filename(str(path))
        page.write_text(re.sub(r"<script\b.*?</script>", "", html, flags=re.DOTALL))
        shown.page.goto(page.as_uri(), timeout=120_000)
        return shown.page

    return visit


WRONG = """() => {
  const RAW = /[a-z]_[a-z_0-9]|\\d\\.0{6}/;
  const found = (selector, wrong, why) => [...document.querySelectorAll(selector)].filter(wrong)
    .map((node) => `${why}: ${(node.alt ?? node.innerText).slice(0, 80)}`);
  const wide = (node) => node.scrollWidth > node.clientWidth + 1;
  const empty = (node) => !node.querySelector("img") && !node.innerText.trim();
  return [
    ...found("html, .jp-OutputArea-output, .jp-InputArea-editor, .jp-MarkdownOutput", wide, "too wide"),
    ...found(".jp-OutputArea-output", empty, "empty"),
    ...found("[data-mime-type$='error'], [data-mime-type$='stderr']", () => true, "error"),
    ...found("img", (node) => !node.complete || !node.naturalWidth, "no picture"),
    ...found("img", (node) => node.alt.length < 20 || /^No description/.test(node.alt), "no description"),
    ...found("th.col_heading, th.index_name", (node) => RAW.test(node.textContent), "raw name in a header"),
  ];
}"""


@pytest.mark.page
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_its_page_looks_right(path, pages):
    assert pages(path).evaluate(WRONG) == []


def test_timings_are_not_tracked():
    """They differ from run to run: `make reproduce` twice leaves a clean tree."""
    for table in (ROOT / "figures").glob("*.csv"):
        columns = set(pd.read_csv(table, nrows=1).columns)
        assert table.stem.endswith("_timings") or not columns & {"items_per_s", "steps_per_s"}
        claims = pd.read_csv(table).claim if "claim" in columns and "01" not in table.stem else pd.Series([])
        assert table.stem.endswith("_timings") or not claims.str.contains("minutes|measured").any()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_decibels_in_the_text_are_measured(path):
    """Every "x.y dB" of the prose is a number of the notebook's CSVs, to the digits given."""
    tables = [pd.read_csv(csv) for csv in (ROOT / "figures").glob(f"{path.stem[:2]}_*.csv")]
    measured = {f"{value:.1f}" for t in tables for value in t.select_dtypes("number").to_numpy().ravel()}
    prose = " ".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
    assert set(re.findall(r"(-?\d+\.\d) dB", prose)) <= measured


@pytest.mark.page
def test_quickstart(tmp_path, monkeypatch):
    """Trains for a moment where no checkpoint is, then does the four operations on the real clip."""
    monkeypatch.setattr(crops, "training_data", lambda _, rate: crops.StemBank.from_synth(2, 4.0, rate))
    execute("00_quickstart", tmp_path, models=[str(tmp_path / "runs" / "model")], seconds=2.0, train_steps=2)
    table = pd.read_csv(tmp_path / "00_quickstart.csv")
    assert set(table.comparison) == {"linearity", "waveform", "floor", "swap"}
    # After so few steps decodes are silent, and comparisons with them undefined.
    assert table[table.comparison == "waveform"][["snr_db", "mss"]].notna().all(axis=None)
    encoder = pd.read_csv(tmp_path / "00_quickstart_encoder.csv")
    assert (encoder.rel_l2 > 0).all()
    assert (tmp_path / "runs" / "model" / "model.safetensors").exists()


@pytest.mark.page
def test_a_misspelt_parameter_makes_nothing(tmp_path):
    """Papermill itself only warns of it."""
    path = ROOT / "notebooks" / "03_homogeneity.ipynb"
    given = {"parameters": {"n_track": 2}, "kernel_name": "python3", "progress_bar": False}
    with pytest.raises(papermill.PapermillExecutionError, match="'n_track': did you mean n_tracks"):
        papermill.execute_notebook(str(path), str(tmp_path / "out.ipynb"), cwd=str(tmp_path), **given)
    assert [found.name for found in tmp_path.iterdir()] == ["out.ipynb"]


@pytest.mark.page
def test_a_misspelt_model_makes_nothing(tmp_path):
    """Once it was trained anew."""
    with pytest.raises(ValueError, match="lin-cae-odd"):
        execute("00_quickstart", tmp_path, cwd=tmp_path, models=["lin-cae-odd"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.page
@pytest.mark.parametrize("notebook", ["00_quickstart", "05_separation"])
def test_a_folder_without_stems_is_said_to_have_none(notebook, tmp_path):
    write_audio(tmp_path / "music" / "song.wav", 0.1 * torch.randn(32000), 16000)
    with pytest.raises(ValueError, match="no track with two stems"):
        execute(notebook, tmp_path, dataset=str(tmp_path / "music"))


@pytest.mark.parametrize(
    ("history", "unknown"),
    [
        (["", "seed = 0\nmodels = []", "import lincae"], None),
        (["seed = 0\nmodels = []", "# Parameters\nseed = 1\n", "import lincae"], None),
        (
            ["seed = 0\nmodels = []", "# Parameters\nsede = 1\nseed = 2", "import lincae"],
            "'sede': did you mean seed",
        ),
        (["seed = 0", "# Parameters\ngain = 1"], "'gain': it has seed"),
    ],
)
def test_parameters_that_do_not_exist(history, unknown):
    if unknown is None:
        check_parameters(history)
    else:
        with pytest.raises(ValueError, match=unknown):
            check_parameters(history)


@pytest.mark.page
def test_training(tmp_path, songs):
    execute(
        "01_training", tmp_path, models=[str(tmp_path / "run")], preset="test", variant="m2l", steps=20,
        validate_every=10, n_tracks=2, seconds=2.0, dataset=[f"{songs}=1"],
    )  # fmt: skip
    curves = pd.read_csv(tmp_path / "01_curves.csv")
    assert curves.step.tolist() == [10, 20]
    schedules = pd.read_csv(tmp_path / "01_schedules.csv")
    assert set(schedules.recipe) == {"paper", "this run"}
    assert len(pd.read_csv(tmp_path / "01_training_data.csv")) == 8


# ---------------------------------------------------------------- evaluation


@pytest.fixture(scope="module")
def evaluation(once, songs):
    """Parameters of notebooks 02 to 06: an untrained network and the toy, two short songs, a shared store."""

    def make(folder: Path) -> None:
        config = lincae.recipe("test", "lin-cae").autoencoder
        lincae.Autoencoder(config, "untrained").save(folder / "untrained")

    root = once("evaluation", make)
    shared = {"models": [str(root / "untrained"), "tanh"], "dataset": str(songs)}
    return shared | {"seconds": 0.5, "store": str(root / "store")}


@pytest.mark.page
def test_reconstruction(tmp_path, evaluation):
    transformers = pytest.importorskip("transformers")
    config = transformers.ClapAudioConfig(
        spec_size=256, num_mel_bins=64, patch_embeds_hidden_size=8, depths=[1] * 4,
        num_attention_heads=[1, 2, 2, 2], hidden_size=64, projection_dim=16, enable_fusion=False,
    )  # fmt: skip
    transformers.ClapAudioModelWithProjection(config).save_pretrained(tmp_path / "clap")
    longer = evaluation | {"seconds": 1.2}  # an embedding a second, two or more for each half of the tracks
    execute("02_reconstruction", tmp_path, **longer, clap=str(tmp_path / "clap"))
    table = pd.read_csv(tmp_path / "02_table.csv")
    assert sorted(table.column.unique()) == ["kad", "rec_mss", "rec_snr"]
    assert table.value.notna().all()
    assert table.set_index(["model", "column"]).counts.unstack().T.all().to_dict() == {
        "untrained": False,
        "tanh": True,
    }
    assert set(pd.read_csv(tmp_path / "02_latents.csv").condition) >= {"std", "silence"}
    bands = pd.read_csv(tmp_path / "02_bands.csv")
    assert bands[bands.model == "tanh"].snr_db.min() > 5


@pytest.mark.page
def test_homogeneity(tmp_path, evaluation):
    execute("03_homogeneity", tmp_path, **evaluation, gains=[-1.0, 0.5])
    curves = pd.read_csv(tmp_path / "03_homogeneity.csv")
    toy = curves[(curves.model == "tanh") & (curves.part == "encoder")].set_index("gain")["mean"]
    assert toy[-1.0] < 1e-6 < toy[0.5]
    assert not curves[(curves.model == "untrained") & curves.counts.notna()].counts.any()
    assert set(pd.read_csv(tmp_path / "03_decibels.csv").comparison) == {
        "linearity",
        "swap",
        "codec",
        "floor",
    }


@pytest.mark.page
def test_additivity(tmp_path, evaluation):
    execute("04_additivity", tmp_path, **evaluation, noise="independent")
    lines = pd.read_csv(tmp_path / "04_additivity.csv")
    assert set(lines[lines.part == "encoder"].n_sources) == {2, 3, 4}
    assert lines[lines.model == "tanh"]["mean"].between(0, 1).all()  # the untrained decoder is silent


@pytest.mark.page
def test_separation(tmp_path, evaluation, reencoders):
    """The page has a stereo section of the one model that has a module."""
    execute("05_separation", tmp_path, **evaluation, modules=reencoders["modules"])
    dots = pd.read_csv(tmp_path / "05_separation.csv")
    assert set(dots.comparison) == {"linearity", "input"}
    assert not dots[dots.model == "untrained"].counts.any()
    page = tmp_path / "demo" / "index.html"
    assert 100_000 < page.stat().st_size < 6_000_000
    sounds = pd.read_csv(page.with_name("demo.csv"))
    assert set(sounds.sound) == {"waveform", "untrained", "tanh"}
    assert set(sounds[sounds.operation == "random c"].sound) == {"waveform", "untrained"}


@pytest.mark.page
def test_latent_mixer(tmp_path, evaluation):
    """On the linear reference every fader does what it says."""
    small = {"dataset": evaluation["dataset"], "seconds": 1.0, "faders_db": [-12.0, 6.0]}
    execute("08_latent_mixer", tmp_path, models=["stft", "tanh"], **small)
    idea = pd.read_csv(tmp_path / "08_idea.csv")
    assert (idea[idea.model == "stft"].snr_db > 60).all()
    faders = pd.read_csv(tmp_path / "08_faders.csv")
    assert faders[faders.model == "stft"].error_db.abs().max() < 0.01
    assert faders[faders.model == "tanh"].error_db.abs().max() > 0.01


@pytest.mark.page
def test_any_autoencoder(tmp_path, evaluation):
    """The report of two models, and the loop of twenty lines for a moment."""
    execute("07_any_autoencoder", tmp_path, **evaluation, n_songs=2, steps=3)
    table = pd.read_csv(tmp_path / "07_report.csv").set_index(["model", "name"])
    assert table.value["tanh", "dec_polarity"] == 60
    assert table.counts["tanh"].all()
    assert not table.counts["untrained"].any()
    claims = pd.read_csv(tmp_path / "07_claims.csv")
    assert claims.claim.str.contains("ten-lines").any()
    assert claims[["goal", "value", "met"]].notna().all(axis=None)
    assert "untrained, tanh" in (tmp_path / "07_report.html").read_text()


def test_the_loop_needs_one_file_of_the_package():
    """Of all that the notebook imports from the package, the loop takes three names of linearity.py."""
    cells = code_cells(ROOT / "notebooks" / "07_any_autoencoder.ipynb")
    (loop,) = (ast.parse(cell.source) for cell in cells if "training-loop" in cell.metadata.get("tags", []))
    imported = {
        alias.asname or alias.name: node.module if isinstance(node, ast.ImportFrom) else alias.name
        for cell in cells
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    names = {node.id for node in ast.walk(loop) if isinstance(node, ast.Name)}
    taken = {name for name in names if imported.get(name, "").startswith("lincae")}
    assert taken == {"VARIANTS", "augment", "implicit_conditioning"}
    assert {imported[name] for name in taken} == {"lincae.linearity"}
    (function,) = (node for node in loop.body if isinstance(node, ast.FunctionDef))
    assert len(ast.unparse(function).splitlines()) <= 20


def write_random(folder: Path, name: str, seed: int) -> None:
    """A tiny network with random weights, also in its last layer, whose zeros would decode to silence."""
    torch.manual_seed(seed)
    model = lincae.Autoencoder(lincae.recipe("test", "lin-cae").autoencoder, name)
    torch.nn.init.normal_(model.network.denoiser.conv_out.weight, std=0.1)
    model.save(folder / name)


@pytest.mark.page
def test_ablations(tmp_path):
    """Every cell can be recomputed from the chunks, and values and verdicts follow from them; models by the
    names of the study."""
    models = ["desk/lin-cae", "desk/m2l"]
    for seed, name in enumerate(models):
        write_random(tmp_path, name, seed)
    given = {"models": [str(tmp_path / name) for name in models], "store": str(tmp_path / "store")}
    execute("06_ablations", tmp_path, dataset="synthetic", n_tracks=2, seconds=0.5, **given)
    chunks, cells, claims, orderings = (
        pd.read_csv(tmp_path / f"06_{name}.csv") for name in ("chunks", "tables", "claims", "orderings")
    )
    ours = cells[cells.source == "ours"]
    assert set(ours.column) == set(tables.PAPER_COLUMNS) - {"kad"}
    assert len(ours) == 2 * (len(tables.PAPER_COLUMNS) - 1)
    for cell in ours.itertuples():
        column = tables.PAPER_COLUMNS[cell.column]
        rows = column.of(chunks[chunks.model == cell.model])
        rows = rows[rows.comparison == ("linearity" if column.decided_by else "codec")]
        value = rows.groupby("track")[column.metric].mean().mean()
        assert cell.value == pytest.approx(value, rel=1e-4, nan_ok=True)
    published = pd.read_csv(ROOT / "data" / "paper_tables.csv").query("table < 3")
    assert cells[cells.source == "paper"].value.tolist() == pytest.approx(published.value.tolist())

    assert len(claims) == 10 + 1
    rows = chunks.query("protocol == 'decoder_homogeneity' and comparison == 'linearity'")
    means = rows[rows.condition == "random"].groupby("model").snr_db.mean()
    claim = claims.set_index("claim").loc["decoder homogeneity SNR, dB higher: desk/lin-cae, desk/m2l"]
    assert claim.value == pytest.approx(means[models[0]] - means[models[1]], rel=1e-3, abs=1e-3)
    assert claim.goal == 3.0
    assert claim.met == (claim.value >= 3.0)
    values = ours.set_index(["model", "column"]).value
    assert len(orderings) > 10
    for row in orderings.itertuples():
        better, worse = values[row.better, row.column], values[row.worse, row.column]
        if not tables.PAPER_COLUMNS[row.column].lower_is_better:
            better, worse = worse, better
        assert row.agrees == (better < worse)


@pytest.mark.page
def test_open_questions(tmp_path):
    write_random(tmp_path, "random", 0)
    given = {"models": [str(tmp_path / "random")], "gains": [0.1, 1.0], "counts": [1, 2], "steps": [1, 2]}
    execute("11_open_questions", tmp_path, n_tracks=2, seconds=0.5, **given)
    gains = pd.read_csv(tmp_path / "11_gains.csv")
    assert sorted(set(gains.gain)) == [-1.0, -0.1, 0.1, 1.0]
    unit = gains[(gains.gain == 1) & (gains.metric == "rel_l2")]["mean"]
    assert unit.max() < 1e-5, "Enc(1 x) is Enc(x)"
    assert sorted(set(pd.read_csv(tmp_path / "11_sources.csv").n_sources)) == [1, 2]
    uses = pd.read_csv(tmp_path / "11_decoding.csv").set_index("use")
    assert set(uses.index) == {"1 step", "2 steps", "independent noise", "odd"}
    assert uses["floor SNR"].notna().all()
    assert uses["encoder additivity"]["odd"] < uses["encoder additivity"]["1 step"]
    assert set(pd.read_csv(tmp_path / "11_phase.csv").kind) == {"decode", "true phase", "true magnitude"}


# ---------------------------------------------------------------- Re-Encoders


@pytest.fixture
def reencoders(tmp_path, evaluation):
    """Parameters of notebooks 09 and 10: untrained modules of the untrained network."""
    source = evaluation["models"][0]
    model = lincae.load(source, "cpu")
    for task, names in (("bandwidth", ("m-gan", "s-l1")), ("stereo", ("left_right", "mid_side"))):
        for name in names:
            layout = name if task == "stereo" else "left_right"
            config = ReEncoderConfig(task, 8, 16, 1, condition=4, condition_blocks=1, layout=layout)
            folder = tmp_path / "modules" / Path(source).name
            ReEncoder(config, describe(model)).save(folder / f"{task}-{name}.safetensors")
    shared = {"models": [source], "dataset": evaluation["dataset"], "seconds": 1.5}
    return shared | {"modules": str(tmp_path / "modules")}


@pytest.mark.page
def test_bandwidth_extension(tmp_path, reencoders):
    execute("09_bandwidth_extension", tmp_path, **reencoders, factor=4)
    table = pd.read_csv(tmp_path / "09_table.csv")
    assert set(table.band) == {"all", "low", "high"}
    systems = {"autoencoder", "input", "autoencoder(input)", "constant", "module m-gan", "module s-l1"}
    assert set(table.system) == systems
    costs = table.drop_duplicates("system").set_index("system")
    assert costs.gflops["input"] == 0
    assert (
        costs.gflops["module m-gan"] > costs.gflops["autoencoder"] > costs.module_gflops["module m-gan"] > 0
    )
    gains = pd.read_csv(tmp_path / "09_gains.csv").set_index(["system", "metric"])["mean"]
    assert gains["module m-gan", "stft_d"] == pytest.approx(0, abs=1e-3), "a new module changes nothing"
    claims = pd.read_csv(tmp_path / "09_claims.csv").set_index("claim")
    assert claims.met[["GFLOP / s of the paper's S", "GFLOP / s of the paper's M"]].all()
    assert len(claims) == 2 * 2 + 1 + 2
    assert len(pd.read_csv(tmp_path / "09_timings.csv")) == 1


@pytest.mark.page
def test_mono_to_stereo(tmp_path, reencoders):
    execute("10_mono_to_stereo", tmp_path, **reencoders, lambdas=[0.0, 1.0])
    table = pd.read_csv(tmp_path / "10_table.csv")
    assert set(table.channel) == {"left", "right", "mid", "side"}
    modules = {f"{name}, lambda = {k}" for name in ("left_right", "mid_side") for k in (0, 1)}
    assert set(table.system) == modules | {"autoencoder", "input", "autoencoder(input)", "latent mid + side"}
    dots = pd.read_csv(tmp_path / "10_control.csv")
    assert len(dots) == 2 * 2 * 2
    assert dots.balance_db.abs().max() < 0.01, "a new module copies mono to both channels"
    assert dots.balance_true_db.abs().max() > 0.1
    assert len(pd.read_csv(tmp_path / "10_correlations.csv")) == 4
    assert len(pd.read_csv(tmp_path / "10_claims.csv")) == 2 * 5
    assert len(pd.read_csv(tmp_path / "10_timings.csv")) == 2


@pytest.mark.page
def test_linear_reencoder(tmp_path, evaluation):
    """The toy with and without a pair that inverts it, beside an untrained network or none."""
    retrained, source = evaluation["models"]
    toy = lincae.load(source, "cpu")
    pair = LinearPair(LinearConfig(latent_channels=toy.hop, hidden=4), describe(toy))
    path = pair.save(tmp_path / "pair.safetensors")
    parameters = evaluation | {"models": [source], "pairs": [str(path)], "retrained": [retrained]}
    parameters |= {"references": [""], "equalled": [], "recorded": str(tmp_path)}
    execute("12_linear_reencoder", tmp_path, **parameters)
    claims = pd.read_csv(tmp_path / "12_claims.csv").set_index("claim")
    assert set(claims.goals) == {"met", "missed"}
    assert claims.value.filter(like="reconstruction MSS").item() == pytest.approx(1, abs=0.02)
    assert claims.met.filter(like="reconstruction").all()
    before_after = pd.read_csv(tmp_path / "12_before_after.csv")
    assert set(before_after.model) == {source, f"{source}+linear", f"{source}+ceiling", Path(retrained).name}
    cost = pd.read_csv(tmp_path / "12_cost.csv")
    assert cost.parameters.item() == sum(p.numel() for p in pair.parameters())
    codecs = pd.read_csv(tmp_path / "12_any_autoencoder.csv").set_index("autoencoder")
    assert (codecs["arithmetic, after"] < codecs["arithmetic, before"]).all()
    assert codecs.channels["Oobleck, random"] == 2
