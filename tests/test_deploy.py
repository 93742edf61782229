"""The files for a cluster name what exists, and a control node without workers hands its runs to the queue."""

import re
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from resources.services import dagster_ui
from resources.settings import HOP_OPTIONS, KAFKA_OPTIONS, MAX_RUNS_ELSEWHERE, Settings, project_root

ROOT = project_root()
DEPLOY = ROOT / "deploy"
QUEUE = "redis://:secret@queue.example.org:6379/0"
#: Of the README's table: services, sensors and the drop directory, which are the control node's business alone.
OF_THE_CONTROL_NODE = {
    "SEECHANGE_DROP", "SEECHANGE_UI_PORT", "SEECHANGE_KAFKA_PORT", "SEECHANGE_WORKSPACE", "SEECHANGE_POLL_URL",
    "SEECHANGE_SETTLE_S", "SEECHANGE_WORKERS",
}  # fmt: skip
SECURITY = {f"SEECHANGE_KAFKA_{name}" for name in KAFKA_OPTIONS} | {f"SEECHANGE_HOP_{name}" for name in HOP_OPTIONS}


def container():
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    deployment, configuration = documents
    return deployment["spec"]["template"]["spec"]["containers"][0], configuration["data"]


def parse(arguments):
    """Whether `seechange` takes these arguments."""
    from seechange_assets.cli.services import register

    app = typer.Typer()
    register(app)
    command = typer.main.get_command(app).commands[arguments[0]]
    command.make_context(arguments[0], list(arguments[1:]))


def test_the_manifest_starts_an_existing_command_with_settings_that_exist():
    one, configuration = container()
    program, *arguments = one["command"]
    assert program == "seechange"
    parse(arguments)
    names = [*configuration, *(variable["name"] for variable in one.get("env", []))]
    assert "SEECHANGE_HOME" in names
    known = {f"SEECHANGE_{name}" for name in (*map(str.upper, Settings.model_fields), "KAFKA_SERVERS")}
    assert set(names) <= known | SECURITY
    settings = Settings.from_environment(configuration)
    assert settings.home.is_relative_to(one["volumeMounts"][0]["mountPath"])


def of_the_readme() -> set[str]:
    rows = re.findall(r"^\| (`SEECHANGE_.*?) \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    return set(re.findall(r"SEECHANGE_[A-Z_]*[A-Z]", " ".join(rows)))


@pytest.mark.parametrize("file", ["kubernetes.yaml", "workers.slurm"])
def test_every_variable_that_a_worker_needs_is_named(file):
    """Without one of them runs are never taken, or products are other ones."""
    assert of_the_readme() >= OF_THE_CONTROL_NODE | {"SEECHANGE_CONFIG", "SEECHANGE_ORBITS"}
    named = set(re.findall(r"SEECHANGE_[A-Z_]*[A-Z]", (DEPLOY / file).read_text()))
    assert (of_the_readme() - OF_THE_CONTROL_NODE) | SECURITY <= named


def test_no_secret_belongs_into_the_configuration():
    _, configuration = container()
    secret = {name for name in (*SECURITY, "SEECHANGE_POSTGRES_URL", "SEECHANGE_QUEUE_URL") if is_secret(name)}
    assert not secret & configuration.keys()


def is_secret(name):
    return name.endswith(("PASSWORD", "USERNAME", "POSTGRES_URL", "QUEUE_URL"))


def test_the_image_holds_the_checkout_in_which_workers_run():
    """A wheel has neither the templates of Dagster's configuration nor the list of what it loads."""
    one, _ = container()
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    told = [line.split() for line in lines if line and not line.startswith("#")]
    assert [words[1] for words in told if words[0] == "WORKDIR"] == [one["workingDir"]]
    copied = {name for words in told if words[0] == "COPY" for name in words[1:-1]}
    assert all((ROOT / name).exists() for name in copied)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert copied >= {"dagster_home", "workspace.yaml", "pyproject.toml", *packages}


def test_the_batch_script_is_one_and_starts_an_existing_command():
    script = DEPLOY / "workers.slurm"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert "export SEECHANGE_HOME=" in text
    assert 'seechange workers "$SLURM_CPUS_PER_TASK"' in text.splitlines()[-1]
    parse(["workers", "32"])


def test_an_unknown_argument_would_be_noticed():
    with pytest.raises(Exception, match=r"(?i)valid int"):
        parse(["workers", "many"])


def written(home: Path, **variables: str) -> dict:
    names = {f"SEECHANGE_{name}": value for name, value in variables.items()}
    settings = Settings.from_environment({"SEECHANGE_HOME": str(home), **names})
    return yaml.safe_load((dagster_ui.prepare_home(settings) / "dagster.yaml").read_text())


@pytest.mark.parametrize(
    ("variables", "launcher", "max_runs"),
    [
        ({"QUEUE_URL": QUEUE}, "WarmWorkerLauncher", MAX_RUNS_ELSEWHERE),
        ({"QUEUE_URL": QUEUE, "MAX_RUNS": "7"}, "WarmWorkerLauncher", 7),
        ({"WORKERS": "3"}, "WarmWorkerLauncher", 6),
        ({"WORKERS": "3", "MAX_RUNS": "4"}, "WarmWorkerLauncher", 4),
        ({"MAX_RUNS": "5"}, "DefaultRunLauncher", 5),
    ],
)
def test_launcher_and_number_of_runs(tmp_path, variables, launcher, max_runs):
    configuration = written(tmp_path, **variables)
    assert configuration["run_launcher"]["class"] == launcher
    assert configuration["concurrency"]["runs"]["max_concurrent_runs"] == max_runs
