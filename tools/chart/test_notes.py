"""The notes after an installation: what they say works."""

import json
import re
import shlex
import subprocess

import pytest
import yaml

from chart import BINARY, CI, ROOT, configuration, without_settings
from render import NAMESPACE


def count(value, placeholder):
    if isinstance(value, dict):
        return sum(count(part, placeholder) for part in value.values())
    if isinstance(value, list):
        return sum(count(part, placeholder) for part in value)
    return int(value == placeholder)


@pytest.mark.parametrize("name_", ["default", "model-empty-dir", "settings", "secrets"])
def test_the_notes_have_settings_that_meilisearch_takes(name_, render):
    _, notes = render(yaml.safe_load(CI[name_].read_text()))
    settings = json.loads(re.search(r"<<'SETTINGS'\n(.*?)\nSETTINGS", notes, re.S)[1])
    embedder = settings["embedders"]["sidelens"]
    assert embedder["source"] == "rest" and embedder["dimensions"] > 0
    assert embedder["url"] == f"http://sidelens.{NAMESPACE}.svc:{80 if name_ == 'settings' else 7800}/embed"
    assert count(embedder["request"], "{{fragment}}") == count(embedder["request"], "{{..}}") == 1
    assert count(embedder["response"], "{{embedding}}") == count(embedder["response"], "{{..}}") == 1
    assert embedder["indexingFragments"].keys() == {"document"} and embedder["searchFragments"].keys() == {"text", "image", "url"}
    assert ("apiKey" in embedder) == (name_ == "secrets")
    assert '{"multimodal": true}' in notes and "--drop-fragments" not in notes


@pytest.mark.skipif(not BINARY, reason="CHART_SIDELENS names no sidelens")
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"textTemplate": "{{doc.title}}"},
        {"imageField": "", "textTemplate": "{{doc.title}}"},
        {"imageField": "images.front[0]"},
        {"imageField": "https://cdn.example/{{doc.a-b.c[0]}}?v={{ doc.v }}&again={{doc.v}}"},
        # Whoever writes filters or tags decides about what is null, too.
        {"imageField": "https://cdn.example/{{doc.f | default: 'none.png'}}"},
        {"imageField": "{% if doc.f %}{{doc.f}}{% else %}https://cdn.example/{{doc.v}}{% endif %}"},
        {"imageField": """{{doc["my picture"]['1'].url}}"""},
    ],
    ids=json.dumps,
)
def test_the_notes_say_what_sidelens_says(fields, render):
    _, notes = render({"meilisearch": fields})
    settings = json.loads(re.search(r"<<'SETTINGS'\n(.*?)\nSETTINGS", notes, re.S)[1])
    # Nobody listens there, so that the facts are those of the demo model in the binary, which has to be named then.
    command = [BINARY, "settings", "--url", "http://127.0.0.1:1", "--model", "demo"]
    wanted = {"imageField": "image", "textTemplate": ""} | fields
    command += ["--image-field", wanted["imageField"]] if wanted["imageField"] else []
    command += ["--text-template", wanted["textTemplate"]] if wanted["textTemplate"] else []
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=without_settings()).stdout)
    printed["embedders"]["sidelens"]["url"] = settings["embedders"]["sidelens"]["url"]
    assert settings == printed
    assert ("--drop-fragments" in notes) == (not wanted["imageField"])


def asking(notes):
    """The words behind `--` of the command that asks the service for the settings."""
    [command] = re.findall(r"^  kubectl .*? exec .*?\|$", notes, re.M | re.S)
    words = shlex.split(command.replace("\\\n", " "))
    return words[words.index("--") + 1 : words.index("|")]


def test_the_notes_ask_the_service_where_the_chart_cannot_know(render):
    fields = {"imageField": "{{doc.photo | split: '/' | last}}", "textTemplate": "{{doc.title}}, the shop's \"best\""}
    own = {"model": {"source": "/models/own"}}
    words = asking(render({"config": own, "meilisearch": fields, "extraArgs": ["--set=cache.file=/tmp/$a b"]})[1])
    assert words[:2] == ["sidelens", "settings"] and "--config=/etc/sidelens/config/sidelens.toml" in words
    assert "--set=cache.file=/tmp/$a b" in words
    for flag, value in [
        ("--url", "http://sidelens.search.svc:7800"), ("--image-field", fields["imageField"]),
        ("--text-template", fields["textTemplate"]),
    ]:
        assert words[words.index(flag) + 1] == value


@pytest.mark.skipif(not BINARY, reason="CHART_SIDELENS names no sidelens")
def test_the_service_need_not_reach_itself_to_be_asked(render, tmp_path):
    model = ROOT / "tests/fixtures/models/clip/laion"
    manifest, notes = render({"config": {"model": {"source": str(model)}}})
    (tmp_path / "sidelens.toml").write_text(configuration(manifest))
    # Nobody listens there: the policy closes the way from a pod of the service to the Service.
    changes = {"/etc/sidelens/config": str(tmp_path), "http://sidelens.search.svc:7800": "http://127.0.0.1:1"}
    command = [BINARY, *asking(notes)[1:]]
    for old, new in changes.items():
        command = [word.replace(old, new) for word in command]
    report = subprocess.run(command, capture_output=True, text=True, env=without_settings())
    assert report.returncode == 0, report.stderr
    embedder = json.loads(report.stdout)["embedders"]["sidelens"]
    assert embedder["dimensions"] == json.loads((model / "config.json").read_text())["projection_dim"]


def test_the_notes_name_the_networks_to_open(render):
    variable = "MEILI_EXPERIMENTAL_ALLOWED_IP_NETWORKS="
    for address, expected in [("", "10.0.0.0/8,"), ("10.96.7.8", "10.96.7.8/32\n"), ("fd00::8", "fd00::8/128\n")]:
        _, notes = render({"service": {"clusterIP": address}})
        assert variable + expected in notes


def test_the_notes_know_no_address_of_a_headless_service(render):
    _, notes = render({"service": {"clusterIP": "None"}})
    assert "ALLOWED_IP_NETWORKS=10.0.0.0/8," in notes and "the addresses of the pods" in notes and "/32" not in notes


@pytest.mark.parametrize(
    "values",
    [
        {"extraEnv": [{"name": "SIDELENS_MODEL__SOURCE", "value": "openai/clip-vit-base-patch32"}]},
        {"extraEnv": [{"name": "SIDELENS_MODELS", "value": "[]"}]},
        {"extraEnvFrom": [{"secretRef": {"name": "own"}}]},
        {"extraArgs": ["--model=/models/own"]},
        {"extraArgs": ["--set", "model.text=/models/own"]},
    ],
    ids=json.dumps,
)
def test_the_notes_do_not_guess_at_a_model_named_elsewhere(values, render):
    assert "SETTINGS" not in render(values)[1]
    # With both told they need not.
    told = {"meilisearch": {"model": "own", "dimensions": 512}}
    assert "SETTINGS" in render({**values, **told})[1]


def test_the_notes_know_what_meilisearch_trusts(render):
    warning = "trusts certificates of public authorities only"
    tls = {"tls": {"existingSecret": "own"}}
    assert warning in render({"secrets": tls})[1]
    _, notes = render({"secrets": tls, "meilisearch": {"url": "https://vectors.example.com/"}})
    assert warning not in notes and '"url": "https://vectors.example.com/embed"' in notes


def test_the_notes_warn_of_an_open_door(render):
    warning = "no key is asked for"
    assert warning in render(yaml.safe_load(CI["http-route"].read_text()))[1]
    assert warning not in render(yaml.safe_load(CI["ingress"].read_text()))[1]
