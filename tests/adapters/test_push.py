"""Pushing to the hub, with a stand-in of its client: what is asked of it, and that a failure costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mhr.adapters import BaseModel, LoraFactors, PlainAdapter, push, save_peft
from tests.cli.running import refuse, succeed


class TransportError(Exception):
    """As HTTP libraries have their own, which are no OSError."""


class Client:
    """A hub that takes what it is given, or fails as `fault` says."""

    def __init__(self, fault: Exception | None = None):
        self.fault = fault
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, **settings: Any) -> Client:
        assert settings == {"library_name": "mhr"}
        return self

    def create_repo(self, repo_id: str, **settings: Any) -> str:
        self.calls.append(("create_repo", {"repo_id": repo_id, **settings}))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, **settings: Any) -> None:
        if self.fault is not None:
            raise self.fault
        held = sorted(path.name for path in Path(settings["folder_path"]).iterdir())
        self.calls.append(("upload_folder", {**settings, "held": held}))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client()
    monkeypatch.setattr(push, "HfApi", client)
    monkeypatch.setattr(push, "get_token", lambda: "hf_secret")
    monkeypatch.setattr(push.constants, "HF_HUB_OFFLINE", False)
    return client


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    plain = PlainAdapter({"q": LoraFactors(torch.ones(4, 2), torch.ones(2, 4), 1.0)}, BaseModel("owner/base", "causal"))
    return save_peft(plain, tmp_path / "lora")


WRITTEN = ["README.md", "adapter_config.json", "adapter_model.safetensors", "merge_report.json"]


@pytest.mark.parametrize("public", [False, True])
def test_a_folder_is_pushed_once_it_is_written(hub, lora, tmp_path, public):
    out = tmp_path / "out"
    flags = ("--public",) if public else ()
    result = succeed("merge", lora, "--to", "peft-lora", "--push", "me/lora", *flags, "--output", out)
    assert "Pushed: https://huggingface.co/me/lora" in result.stderr
    made, sent = hub.calls
    assert made == (
        "create_repo",
        {"repo_id": "me/lora", "private": not public, "exist_ok": True, "repo_type": "model"},
    )
    assert sent[1]["held"] == WRITTEN
    assert sent[1]["ignore_patterns"] == ["merge_report.json"]  # which names folders of this machine
    assert Path(sent[1]["folder_path"]) == out
    assert "'me/lora'" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    "fault",
    [
        ConnectionError("Cannot reach the hub"),
        TransportError("Name or service not known\n\nmore lines"),
        PermissionError("403 Forbidden: you have no rights here"),
    ],
)
def test_a_failure_leaves_the_folder_as_it_is(hub, lora, tmp_path, fault):
    hub.fault = fault
    out = tmp_path / "out"
    said = refuse_after_merging(lora, out)
    assert f"{out} is written, but could not be pushed to me/lora: {str(fault).partition(chr(10))[0]}" in said
    assert said.endswith(f"try again with hf upload me/lora {out}")
    assert "hf_secret" not in said
    assert sorted(path.name for path in out.iterdir()) == WRITTEN


def refuse_after_merging(lora: Path, out: Path) -> str:
    return refuse("merge", lora, "--to", "peft-lora", "--push", "me/lora", "--output", out)


@pytest.mark.parametrize("name", ["lora", "me/my/lora", "me/..", "me/lora ", "-me/lora", "me/lora.git", "mé/lora"])
def test_names_that_the_hub_does_not_take(hub, lora, tmp_path, name):
    said = refuse("merge", lora, "--to", "peft-lora", "--push", name, "--output", tmp_path / "out")
    assert f"push is {name!r}, expected OWNER/NAME on the hub" in said
    assert hub.calls == []
    assert not (tmp_path / "out").exists()


def test_without_a_token_nothing_is_merged(hub, lora, tmp_path, monkeypatch):
    monkeypatch.setattr(push, "get_token", lambda: None)
    assert "no token of the hub is here to push with" in refuse_after_merging(lora, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_offline_nothing_is_merged(hub, lora, tmp_path, monkeypatch):
    monkeypatch.setattr(push.constants, "HF_HUB_OFFLINE", True)
    assert "nothing can be pushed while HF_HUB_OFFLINE is set" in refuse_after_merging(lora, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--to", "peft-lora", "--public"), "public is true, but nothing is pushed: add --push OWNER/NAME"),
        (
            ("--push", "me/lora", "--to", "mhr"),
            "push is 'me/lora', but to is 'mhr', and what is pushed is a PEFT folder",
        ),
    ],
)
def test_pushing_settings_without_effect(hub, lora, tmp_path, flags, said):
    assert said in refuse("merge", lora, *flags, "--output", tmp_path / "out")
    assert hub.calls == []
    assert not (tmp_path / "out").exists()
