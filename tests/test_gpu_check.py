"""benchmarks/gpu_check.py: it runs whole on a CPU, and does not pass where something hangs, fails or is wrong."""

import dataclasses
import importlib
import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forked import Forked

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a script, whose own folder Python looks into first."""
    monkeypatch.syspath_prepend(FOLDER)


def script(name: str) -> Any:
    return importlib.import_module(name)


def gpu_lines(
    capsys: pytest.CaptureFixture[str], out: Path, *only: str, seconds: float = 560
) -> tuple[int, list[dict[str, Any]]]:
    """How `gpu_check.py` ends, and what it prints, which is what it writes; the last line says how it ends."""
    check = script("gpu_check")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gpu_check.py", "--out", str(out), "--seconds", str(seconds), "--only", *only])
        code = check.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"section"')]
    written = json.loads((out / "gpu_check.json").read_text())["sections"]
    assert [name for name in written for _ in written[name]] == [line["section"] for line in lines]
    assert lines[-1]["section"] == "ending" and lines[-1]["code"] == code
    return code, lines


def verdicts(lines: list[dict[str, Any]]) -> dict[str, str]:
    """Of the goals, by their names."""
    return {line["goal"]: line["verdict"] for line in lines if line["section"] == "goals"}


def test_sections_and_goals_are_complete_and_fit_into_ten_minutes() -> None:
    check, goals = script("gpu_check"), script("gpu_goals")
    assert sum(section.seconds for section in check.SECTIONS.values()) <= 560
    for name, section in check.SECTIONS.items():
        function = pkgutil.resolve_name(section.function)
        assert function.__name__ == name and function.__doc__
    assert {goal.section for goal in goals.GOALS} <= set(check.SECTIONS)
    assert len({goal.name for goal in goals.GOALS}) == len(goals.GOALS)


def test_all_that_a_gpu_is_checked_for_runs_on_a_cpu_at_tiny_sizes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """But for the peers, which take long to import."""
    sections = [name for name in script("gpu_check").SECTIONS if name != "peers"]
    code, lines = gpu_lines(capsys, tmp_path, *sections)
    assert code == 0
    assert [line["section"] for line in lines if line.get("state") == "done"] == sections
    found = {name: [line for line in lines if line["section"] == name] for name in (*sections, "goals")}
    right = {goal.name for goal in script("gpu_goals").GOALS if goal.right and goal.section != "waits"}
    assert {name for name, verdict in verdicts(lines).items() if verdict == "met"} == right
    assert set(lines[-1]["open"]) <= set(verdicts(lines)) - right
    run, resumed, _ = found["command"]
    assert run["code"] == resumed["code"] == 143
    losses = [line["losses"] for line in found["sharing"][:-1]]
    assert len(losses) == 4 and all(other == pytest.approx(losses[0], rel=1e-3) for other in losses)


@pytest.mark.slow
def test_peers_that_a_gpu_is_checked_with_take_turns_with_ours(tmp_path: Path) -> None:
    for name in ("transformers", "lightly"):
        pytest.importorskip(name)
    command = [sys.executable, "-W", "ignore", FOLDER / "gpu_check.py", "--out", tmp_path, "--only", "peers"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert set(lines[1]["ratios"]) == {"transformers", "lightly"} and lines[0]["absent"] == []


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_what_a_gpu_compiles_is_compiled_on_a_cpu_and_has_the_losses_of_what_is_not(
    backend: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that compiles but the command: alone, checkpointed, in DDP and FSDP, and the peers that are installed.

    Without kernels too, which take a C++ compiler minutes: graphs are whole, and fit into DDP and FSDP, or do not.
    """
    steps, compile_ = script("gpu_steps"), torch.compile
    sections = ["waits", "steps", "sharing", "checkpointing", "profile"]
    if backend == "inductor":
        lacking = script("semmae.train.compiling").missing_for_compile(gpu=False)
        if lacking:
            pytest.skip(f"needs {lacking}")
        sections.append("peers")  # in processes of their own, which compile by default
    else:
        monkeypatch.setattr(torch, "compile", lambda work, **how: compile_(work, **{**how, "backend": backend}))
    sizes = dataclasses.replace(steps.TINY, compiled=(True,), batches=(2, 2), larger=())
    monkeypatch.setattr(steps, "sizes_here", lambda _: sizes)
    code, lines = gpu_lines(capsys, tmp_path, *sections, seconds=3000)
    assert code == 0, [line["state"] for line in lines if "state" in line]
    found = {name: [line for line in lines if line["section"] == name and "state" not in line] for name in sections}
    assert all(line["images_per_s"] > 0 for name in ("steps", "checkpointing") for line in found[name])
    assert [line["compiled"] for line in found["sharing"]] == [False, True, True, True, True]
    assert max(line["apart"] for line in found["sharing"][1:]) < 1e-3
    assert "pretrain, compiled" in [line["task"] for line in found["waits"]]
    absent, *compared = found.get("peers", [{"absent": []}])
    assert all(line["compiled"] and len(line["ratios"]) == 2 - len(absent["absent"]) for line in compared)


def test_a_section_that_fails_or_hangs_ends_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Any:
        yield {"found": 1}
        raise ValueError("broken")

    check, steps = script("gpu_check"), script("gpu_steps")
    works = {"facts": fails, "products": lambda *_: time.sleep(60), "losses": lambda *_: iter([{"found": 2}])}
    for name, work in works.items():
        monkeypatch.setattr(steps, name, work)
    monkeypatch.setattr(steps, "sizes_here", lambda _: dataclasses.replace(steps.TINY, tiny=False))
    shares = {name: check.Section(f"gpu_steps:{name}", 1 if name == "products" else 500) for name in works}
    monkeypatch.setattr(check, "SECTIONS", shares)
    code, lines = gpu_lines(capsys, tmp_path, *works)
    states = [line["state"] for line in lines if "state" in line]
    assert code == 1 and [state.partition(":")[0] for state in states] == ["failed", "stopped", "done"]
    assert "broken" in states[0] and [line["found"] for line in lines[:4] if "state" not in line] == [1, 2]
    assert (lines[-1]["failed"], lines[-1]["stopped"], lines[-1]["missed"]) == (["facts"], ["products"], [])


def test_a_section_for_which_no_time_is_left_is_named_and_nothing_of_an_earlier_run_is_lost(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, lines = gpu_lines(capsys, tmp_path, "losses", "products", seconds=1e-9)
    assert code == 1 and lines[-1]["skipped"] == ["losses", "products"]
    assert set(verdicts(lines).values()) == {"open"}
    before = (tmp_path / "gpu_check.json").read_bytes()
    with pytest.raises(SystemExit) as refused:
        gpu_lines(capsys, tmp_path, "facts")
    assert refused.value.code == 2 and (tmp_path / "gpu_check.json").read_bytes() == before


def test_a_machine_that_lacks_a_package_is_refused_before_its_time_is_spent(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = script("gpu_check")
    found = check.find_spec
    monkeypatch.setattr(check, "find_spec", lambda name: None if name == "lightly" else found(name))
    with pytest.raises(SystemExit) as refused:
        gpu_lines(capsys, tmp_path / "out", "facts")
    assert refused.value.code == 2 and "lightly" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_losses_that_differ_are_found_and_decide_how_the_script_ends(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the first training, that of the CPU, learn a tenth faster."""
    steps, trainings = script("gpu_steps"), []
    plain = steps.adamw

    def deviating(module: Any, *, lr: float, **given: Any) -> Any:
        trainings.append(module)
        return plain(module, lr=lr * (1.1 if len(trainings) > 1 else 1.0), **given)

    monkeypatch.setattr(steps, "adamw", deviating)
    code, lines = gpu_lines(capsys, tmp_path, "losses")
    assert code == 3
    found = {line["precision"]: line["apart"] for line in lines if "apart" in line}
    assert found["float32"] > 1e-4
    (missed,) = lines[-1]["missed"]
    assert "float32" in missed and verdicts(lines)[missed] == "missed"


def lines_of_a_gpu(share: float = 1.0) -> dict[str, list[dict[str, Any]]]:
    """All that goals look at, met to the digit; with a smaller share each is missed."""
    rate, wrong, done = 4500 * share, 1 - share, {"state": "done"}
    figures: dict[str, list[dict[str, Any]]] = {
        "losses": [{"precision": "float32", "apart": 1e-4 + wrong}, {"precision": "bf16", "apart": 1e-2 + wrong}],
        "waits": [{"task": "pretrain", "waits": 0 if share == 1 else 2}, {"task": "teacher", "waits": 3}],
        "steps": [{"model": "vit_base", "compiled": True, "batch": 512, "images_per_s": rate}],
        "sharing": [{"way": "alone"}, {"way": "ddp", "apart": 1e-3}, {"way": "fsdp", "apart": 1e-2 + wrong}],
        "command": [{"batch": 512, "images_per_s": 0.9 * share * rate}, {"misplaced": 0 if share == 1 else 1}],
        "checkpointing": [{"images_per_s": rate}],
        "labelling": [{"precision": "float32", "same": 0.95 * share}, {"precision": "bf16", "same": 0.9}],
        "neighbours": [{"top1": 99 * share}],
        "peers": [
            {"ratios": {}, "absent": []},
            {"compiled": True, "ratios": {"transformers": 1.5 * share, "lightly": 1.5 * share}},
            {"compiled": False, "ratios": {"transformers": 1.0, "lightly": 1.0}},
        ],
    }
    if share < 1:
        figures["steps"].append({"model": "vit_huge", "compiled": True, "images_per_s": 0.0, "fault": "out of memory"})
        figures["checkpointing"].append({"images_per_s": 0.0, "fault": "out of memory"})
    return {name: [*lines, done] for name, lines in figures.items()}


@pytest.mark.parametrize(("share", "verdict", "code"), [(1.0, "met", 0), (0.89, "missed", 3)])
def test_goals_of_a_gpu_are_judged_by_what_was_found(share: float, verdict: str, code: int) -> None:
    judge, lines = script("gpu_goals"), lines_of_a_gpu(share)
    lines["goals"] = list(judge.goals(lines, big=True))
    assert [goal["verdict"] for goal in lines["goals"]] == [verdict] * len(judge.GOALS)
    assert judge.ending(lines, big=True)["code"] == code
    expected = [verdict if goal.right else "open" for goal in judge.GOALS]
    assert [goal["verdict"] for goal in judge.goals(lines, big=False)] == expected


@pytest.mark.parametrize("section", lines_of_a_gpu())
def test_a_goal_of_a_section_that_is_not_done_is_not_met(section: str) -> None:
    judge, lines = script("gpu_goals"), lines_of_a_gpu()
    own = {goal.name for goal in judge.GOALS if goal.section == section}
    lines[section] = [{"state": "skipped: no time is left"}]
    lines["goals"] = list(judge.goals(lines, big=True))
    ending = judge.ending(lines, big=True)
    assert own <= set(ending["open"]) and ending["skipped"] == [section] and ending["code"] == 1
    # Nor is one of which it has found a part, where the rest may be wrong.
    for line in (lines := lines_of_a_gpu())[section]:
        line.update({"state": "stopped: its time is over"} if "state" in line else {})
    met = {goal["goal"] for goal in judge.goals(lines, big=True) if goal["verdict"] == "met"}
    assert not met & {goal.name for goal in judge.GOALS if goal.section == section and goal.most}


def test_a_gpu_that_cannot_compile_or_has_no_peers_has_not_met_these_goals() -> None:
    judge, lines = script("gpu_goals"), lines_of_a_gpu()
    lines["steps"][0]["compiled"] = False
    lines["peers"] = [{"ratios": {}, "absent": ["transformers", "lightly"]}, {"state": "done"}]
    lines["goals"] = list(judge.goals(lines, big=True))
    ending = judge.ending(lines, big=True)
    assert len(ending["open"]) == 4 and ending["code"] == 1  # the rate, and the command's share of it
    lines["goals"] = list(judge.goals(lines, big=False))
    assert judge.ending(lines, big=False)["code"] == 0


def test_a_step_out_of_memory_and_losses_that_are_no_numbers_are_judged() -> None:
    judge, lines = script("gpu_goals"), lines_of_a_gpu()
    lines["steps"][0] |= {"images_per_s": 0.0, "fault": "out of memory"}
    losses = [1.0, float("nan"), 1.0]
    lines["losses"][0]["apart"] = script("gpu_steps").apart(losses, [1.0] * 3)
    lines["sharing"].insert(0, {"way": "ddp", "apart": script("gpu_steps").apart([1.0] * 3, losses)})
    found = {(goal["verdict"], goal["of"]) for goal in judge.goals(lines, big=True)}
    assert {of for verdict, of in found if verdict == "missed"} == {"steps", "losses", "sharing"}
    assert {of for verdict, of in found if verdict == "open"} == {"command"}


@pytest.mark.parametrize(("waits", "counted"), [(False, 0), (True, 6)])
def test_waits_are_those_of_steps_and_not_what_torch_says_of_its_search(
    waits: bool, counted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a GPU that says what torch says, and that is waited for where a network moves to it, as a real one is."""
    steps, own = script("gpu_steps"), script("gpu_waits")
    mode, said = "default", "called a synchronizing CUDA operation"

    def wait() -> None:
        if mode == "error":
            raise RuntimeError(said)
        if mode == "warn":
            warnings.warn_explicit(said, UserWarning, "fit_loop.py", 7, module="pytorch_lightning.loops")

    def set_mode(new: str) -> None:
        nonlocal mode
        mode = new
        warnings.warn("… is a prototype feature and does not yet detect all synchronizing operations", stacklevel=2)

    fit, learn = own.fit, own.PretrainTask.training_step

    def moved(*given: Any) -> Any:
        wait()
        return fit(*given)

    def step(*given: Any) -> Any:
        if waits:
            wait()
        return learn(*given)

    monkeypatch.setattr(own, "GPU", True)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    monkeypatch.setattr(own, "fit", moved)
    monkeypatch.setattr(own.PretrainTask, "training_step", step)
    found, places = own.watched("pretrain", steps.TINY, tmp_path / "out")
    assert found == counted and bool(places) == waits
    assert all(re.fullmatch(r".+\.py:\d+", place) for place in places) and mode == "default"


def test_a_worker_ends_with_the_script_however_that_ends(tmp_path: Path) -> None:
    """Or it would keep the GPU."""
    check = script("gpu_check")

    def killed() -> None:
        worker = check.Worker(True, tmp_path)
        worker._start()
        print(worker._process.pid, worker._next(time.monotonic() + 100)["tiny"], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    first = Forked(killed)
    assert first.ended(120) == -signal.SIGKILL, first.output
    number = int(re.findall(r"^(\d+) True$", first.output, re.M)[0])
    end = time.monotonic() + 30
    while alive(number) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive(number)


def alive(number: int) -> bool:
    """Whether a process is there that has not ended."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{number}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_gpu_s_command_is_never_forked_from_a_process_that_has_begun_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, steps = script("gpu_runs"), script("gpu_steps")
    asked: list[bool] = []

    def interrupted(words: list[str], out: Path, step: int, afresh: bool) -> dict[str, Any]:
        asked.append(afresh)
        lines = [{"step": each, "images_per_s": 1.0, "data_wait": 0.0, "loss": 1.0} for each in range(step + 1)]
        return {"lines": lines, "code": 143, "begun_s": 0, "ended_s": 0}

    sizes = steps.sizes_here(True)
    images = SimpleNamespace(source=SimpleNamespace(root=tmp_path))
    for name, value in {
        "interrupted": interrupted, "packed": lambda *_: images, "most_workers": lambda _: 1,
        "random_parts": lambda *_: SimpleNamespace(path=tmp_path),
    }.items():  # fmt: skip
        monkeypatch.setattr(runs, name, value)
    for gpu in (True, False):
        monkeypatch.setattr(runs, "GPU", gpu)
        list(runs.command(sizes, tmp_path))
    assert asked == [True, True, False, False]


def test_what_a_stopped_process_has_begun_is_made_again_and_what_is_whole_is_kept(tmp_path: Path) -> None:
    runs, made = script("gpu_runs"), []

    def make(place: Path) -> None:
        made.append(place)
        place.mkdir()
        (place / f"{len(made)}").touch()
        if len(made) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.whole(tmp_path / "photos", make)
    for _ in range(2):
        assert [path.name for path in runs.whole(tmp_path / "photos", make).iterdir()] == ["2"]
    assert len(made) == 2


@pytest.mark.parametrize(
    ("steps", "wrong"),
    [([10, 20, 28, 38, 51], 0), ([10, 20, 20, 30], 1), ([10, 20, 10, 20], 1), ([10, 20, 50], 1), ([40, 50], 1)],
)
def test_reports_that_were_doubled_or_out_of_order_are_counted(steps: list[int], wrong: int) -> None:
    lines = [{"step": step} for step in steps]
    assert script("gpu_runs").misplaced(lines[:2], lines) == wrong


def test_a_run_that_resuming_began_anew_has_lost_its_reports() -> None:
    """All over again they follow on each other, in a run that has kept nothing."""
    before, anew = ([{"step": step, "images_per_s": rate} for step in (10, 20, 30)] for rate in (5.0, 6.0))
    runs = script("gpu_runs")
    assert [runs.misplaced(before[:2], each) for each in (before, anew, before[:1] + anew[1:])] == [0, 2, 1]
