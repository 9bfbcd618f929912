"""The README and the pages say what is true: trees, commands, flags, tables, links."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet.cli.main import VERBS, main
from bitnet.cli.registry import experiment_names
from conftest import Command
from corpora import stories, write_txt

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name != "log.md")
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
PAGES = [page.read_text(encoding="utf-8") for page in FILES]
FOREIGN_FLAGS = {"--index-url", "--porcelain", "--strict"}  # of pip, git and mypy
FOREIGN_FLAGS |= {
    "--kills",
    "--corruptions",
    "--full-disk",
    "--commands",
    "--hostile",
}  # of benchmarks/reliability
FOREIGN_FLAGS |= {"--no-deps", "--no-binary", "--build", "--target"}  # of pip and cmake
FOREIGN_FLAGS |= {"--ways"}  # of benchmarks/learning.py
FOREIGN_FLAGS |= {"--shapes", "--rounds", "--llama-bench", "--gguf"}  # of benchmarks/inference.py
EXAMPLES = {"NAME.py", "stories.txt"}  # names of the reader's own files


def blocks(language: str) -> list[str]:
    return [block for page in PAGES for block in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)]


def commands(program: str) -> list[list[str]]:
    lines = [line.split(" #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.split(" ")[0] in {program, f"./{program}"}]


SOURCE = ROOT / "src" / "bitnet"


def named_in_trees() -> dict[Path, set[str]]:
    """What the two trees of the README list: for each folder the names in it. An entry is
    `folder/` phrase: names, where a name may be: folder/ (names).
    """
    found: dict[Path, set[str]] = {}
    for indent, folder, text in re.findall(r"^( *)\* `(\S+)/`(.*)$", README, re.MULTILINE):
        place = (SOURCE if indent else ROOT) / folder
        names = text.rsplit(": ", 1)[-1]
        for inner, inside in re.findall(r"(\S+)/ \(([^)]*)\)", names):
            found[place / inner] = set(inside.split(", "))
        plain = re.sub(r"\S+/ \([^)]*\)", "", names)
        found.setdefault(place, set()).update(re.findall(r"[^\s,]+", plain))
    return found


def names_in(folder: Path, *, folders: bool) -> set[str]:
    """The files of a folder, and with `folders` the folders too; modules and pages without their suffix."""
    inside = [
        path for path in folder.iterdir() if path.name not in {"__pycache__", "__init__.py", "__main__.py"}
    ]
    files = {
        path.stem if path.suffix in {".py", ".md"} else path.name
        for path in inside
        if path.is_file() and path.name[0] != "."
    }
    return files | {f"{path.name}/" for path in inside if folders and path.is_dir() and path.name[0] != "."}


def test_the_trees_name_every_folder_and_file() -> None:
    """Of the package whole, of benchmarks, docs and tests one level. Where it fails: python
    benchmarks/readme.py writes the trees.
    """
    inside = [path for path in [SOURCE, *SOURCE.rglob("*/")] if path.is_dir() and path.name != "__pycache__"]
    real = {folder: names_in(folder, folders=False) for folder in inside}
    real |= {ROOT / name: names_in(ROOT / name, folders=True) for name in ("benchmarks", "docs", "tests")}
    named = named_in_trees()
    for folder in real.keys() | named.keys():
        assert named.get(folder) == real.get(folder), (
            f"{folder.relative_to(ROOT)}; run: python benchmarks/readme.py"
        )


def test_the_list_of_pages_and_the_pages_lead_to_each_other() -> None:
    index = ROOT / "docs" / "README.md"
    listed = set(re.findall(r"\]\(([^)#:]+\.md)\)", index.read_text(encoding="utf-8")))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert listed == {*pages, "../README.md"}
    assert "](docs/README.md)" in README
    for page in pages:
        assert "](README.md)" in (ROOT / "docs" / page).read_text(encoding="utf-8"), (
            f"{page} has no link to docs/README.md"
        )


def test_the_readme_is_one_that_people_finish() -> None:
    """One sentence, a picture, one command with its output; what is longer has a page of its own."""
    assert README.index("![") < README.index("```bash") < README.index("```text")
    summary = README.split("<!-- summary -->")[1].split("<!-- /summary -->")[0]
    assert 3 <= len([line for line in summary.splitlines() if line.startswith("|")]) <= 2 + 6
    assert len(README.splitlines()) < 145
    for paper in ("2402.17764", "2310.11453", "2504.12285"):
        assert paper in README
        assert paper in (ROOT / "CITATION.bib").read_text(encoding="utf-8")


def test_the_page_of_the_architecture_names_every_package() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert packages <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


@pytest.mark.slow
def test_the_page_of_the_architecture_has_the_table_of_lines() -> None:
    """Its row names are those of benchmarks/lines.py; its numbers are of the day when `just lines` wrote
    them.
    """
    command = [sys.executable, "benchmarks/lines.py"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    written = page.split("<!-- lines -->")[1].split("<!-- /lines -->")[0].strip()
    first_cells = [[line.split("|")[1].strip() for line in text.splitlines()] for text in (printed, written)]
    assert first_cells[0] == first_cells[1], "run: just lines"
    assert printed.splitlines()[0] == written.splitlines()[0]


def test_every_recipe_named_exists() -> None:
    recipes = subprocess.run(
        [str(Path(sys.executable).with_name("just")), "--summary"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    used = commands("just")
    assert used
    assert {words[1] for words in used} <= set(recipes)
    wanted = "demo train-simple play-tictactoe plot-loss check-status test check bench lines " + " ".join(
        f"exp-{name} train-{name}" for name in ("arithmetic", "tictactoe", "tinystories", "baseline")
    )
    assert set(wanted.split()) <= set(recipes)


@pytest.mark.slow
def test_every_command_named_is_accepted(
    bitnet: Command, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """train with --dry-run; the rest against a real run and small files. The flags that a page shows must
    parse.

    Fine-tuning, voices and chat are tried in tests/experiments/test_bitnut_sft.py.
    """
    monkeypatch.chdir(tmp_path)
    write_txt(Path("stories.txt"), stories(200))
    write_txt(Path("more-stories.txt"), ["1 + 2 = 3", "4 + 5 = 9"])  # the run at hand knows these characters
    Path("books").mkdir()
    write_txt(Path("books/a.txt"), stories(20))
    Path("my-devices.toml").write_text((ROOT / "src/bitnet/cost/devices.toml").read_text())
    used = commands("bitnet")
    assert len(used) >= 6
    for _, verb, *words in used:
        assert verb in VERBS
        rest = [word for word in words if word != "--help"]
        if verb == "train" and "--from" not in rest and not rest[0].startswith("path/"):
            result = bitnet(verb, *rest, "--dry-run")
        elif verb == "prepare":
            result = bitnet(verb, *(word.replace("1_000_000", "50") for word in rest))
        elif verb == "tokenizer":
            result = bitnet(verb, *(word.replace("2048", "320") for word in rest))
        elif verb == "cost":
            result = bitnet(verb, *(word for word in rest if word != "--measure"))
        elif verb == "complete":
            result = bitnet(
                verb,
                "latest",
                "1 + 2 = ",
                *(word for word in rest[2:] if word != "--interactive"),
                "--runs-dir",
                runs,
            )
        elif verb in {"status", "plot", "evaluate", "report"} and not rest[0].startswith("bitnut_"):
            result = bitnet(verb, *rest, "--runs-dir", runs)
        else:
            continue
        assert result.code == 0, (verb, rest, result.err)


def flags_of(*words: str) -> set[str]:
    """The flags in the help of a command."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", out.getvalue()))


@pytest.mark.slow
def test_every_flag_named_is_one_of_the_program() -> None:
    """In the pages and in the messages of the program itself; `--start-from`, which never existed, stood in a
    generated table.
    """
    commands = [(verb,) for verb in VERBS] + [("train", name) for name in experiment_names()]
    commands += [
        ("tokenizer", "train"),
        ("tokenizer", "inspect"),
        ("voice", "prompts"),
        ("voice", "answers"),
        ("cost", "1B"),
    ]
    known = {"--version", *FOREIGN_FLAGS}.union(*(flags_of(*words) for words in commands))
    sources = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py"))]
    named = {
        flag
        for text in [*PAGES, *sources]
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9_.-]*[a-z0-9]", text)
    }
    assert named - known == set()


@pytest.mark.slow
def test_measured_tables_are_the_recorded_ones() -> None:
    command = [sys.executable, "benchmarks/readme.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_link_to_a_file_leads_somewhere() -> None:
    for file, page in zip(FILES, PAGES, strict=True):
        for target in re.findall(r"\]\(([^)#:]+)\)", page):
            assert (file.parent / target).exists(), (file.name, target)


def test_every_source_file_that_a_page_names_exists() -> None:
    """`nn/quantize.py` counts from the repository, from src or from src/bitnet; a bare `quantize.py` may
    stand in any folder.
    """
    files = {
        path for folder in ("src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.*")
    } | set(ROOT.glob("*.*"))
    for page, text in zip(FILES, PAGES, strict=True):
        for name in re.findall(r"`(?:python )?((?:[\w.]+/)*\w+\.(?:py|c|toml|txt|sh))`", text):
            found = (
                any((start / name).is_file() for start in (ROOT, ROOT / "src", SOURCE))
                if "/" in name
                else name in {f.name for f in files}
            )
            assert found or name in EXAMPLES, (page.name, name)


@pytest.mark.parametrize("name", ["demo", "test"])
def test_the_two_commands_come_first(name: str) -> None:
    assert f"./just {name}" in blocks("bash")[0]
