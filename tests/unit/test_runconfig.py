"""What `nfqlb run` hands over: it comes back as it was, and what cannot be is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nfqlb.errors import ConfigError
from nfqlb.model import Intent
from nfqlb.runconfig import RunConfig, decode, encode
from tests.unit.fakes import DNS, WEB


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(api="/run/nfqlb/main/api.sock"),
        RunConfig(
            api="/a.sock",
            name="web",
            intent=Intent((WEB, DNS)),
            origin="/etc/nfqlb.toml",
            restore=True,
            vip_dev="eth0.100",
            queue=0,
            workers=4,
            engine="reference",
            diverter="iptables",
            firewall="leave",
            connections=64,
            dr_by="frame",
            dr_mask=0x1,
        ),
    ],
)
def test_what_is_handed_over_comes_back(config: RunConfig) -> None:
    assert decode(encode(config)) == config
    assert set(json.loads(encode(config))) == set(config.__struct_fields__)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "a b"}, "name 'a b': cannot be used; use a letter, then letters, digits and '-', at most 15 in all"),
        ({"api": "/" + 107 * "x"}, f"api '/{107 * 'x'}': is too long for a socket; use at most 107 bytes"),
        ({"vip_dev": ""}, "vip_dev '': is not the name of a network device; see `ip link`"),
        ({"vip_dev": "a/b"}, "vip_dev 'a/b': is not the name of a network device; see `ip link`"),
        ({"vip_dev": "e" * 16}, "vip_dev 'eeeeeeeeeeeeeeee': is not the name of a network device; see `ip link`"),
        ({"queue": -1}, "queue '-1': out of range; use 0 to 65532"),
        ({"queue": 65533, "workers": 2}, "queue '65533': out of range; use 0 to 65528"),
        ({"workers": 0}, "workers '0': out of range; use 1 to 64"),
        ({"workers": 65}, "workers '65': out of range; use 1 to 64"),
        ({"engine": "slow"}, "engine 'slow': is not known; choose from fast, reference"),
        ({"diverter": "pf"}, "diverter 'pf': is not known; choose from auto, nft, iptables"),
        ({"firewall": "drop"}, "firewall 'drop': is not known; choose from accept, leave"),
        ({"dr_by": "mac"}, "dr_by 'mac': is not known; choose from auto, frame, route"),
        *(
            ({"dr_mask": mask}, f"dr_mask '{mask:#x}': is no block of bits of a 32-bit mark; write it like 0xff000000")
            for mask in (0, -1, 0x101, 1 << 32)
        ),
        ({"connections": 63}, "connections '63': out of range; use 64 to 67108864"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        RunConfig(**{"api": "/run/a.sock", **options})
    assert str(error.value) == sentence
