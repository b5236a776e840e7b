"""``--set name=value``: parse, check and complete the settings of a protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from paperworks.lab.nouns import Claim, Protocol, Setting, at_tier

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def convert(setting: Setting, value: Any) -> Any:
    """`value` (a string from the command line, or a typed value) as the setting's type. Raises ValueError by name."""
    wanted = f"setting {setting.name!r}: got {value!r}, wanted {setting.kind.__name__} ({setting.help})"
    try:
        if setting.kind is bool:
            text = str(value).lower()
            if text not in TRUE + FALSE:
                raise ValueError(wanted)
            made: Any = text in TRUE
        elif setting.kind is int and isinstance(value, float) and not value.is_integer():
            raise ValueError(wanted)
        else:
            made = setting.kind(value)
    except (TypeError, ValueError):
        raise ValueError(wanted) from None
    if setting.check is not None:
        try:
            setting.check(made)
        except ValueError as error:
            raise ValueError(f"setting {setting.name!r}: {error}") from None
    return made


def parse(pairs: Iterable[str]) -> dict[str, str]:
    """``["a=1", "b=x"]`` as a dict. Raises ValueError for a pair without '=' and for a name given twice."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"--set: got {pair!r}, wanted name=value")
        if name.strip() in found:
            raise ValueError(f"--set: {name.strip()!r} is given twice")
        found[name.strip()] = value
    return found


def check_known(given: Mapping[str, Any], claims: Iterable[Claim]) -> None:
    """Raise ValueError where a given name is a setting of no protocol among `claims`; the message lists what exists."""
    known = {s.name: s for c in claims if c.protocol is not None for s in c.protocol.settings}
    for name in given:
        if name not in known:
            listed = "; ".join(f"{s.name} ({s.help})" for s in known.values()) or "none"
            raise ValueError(f"setting {name!r} is not known here. Settings: {listed}")


def complete(
    protocol: Protocol, tier: str, claim_settings: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Every setting of `protocol` at `tier`: the user's value, else the claim's, else the default."""
    values = {}
    for setting in protocol.settings:
        if setting.name in given:
            value = given[setting.name]
        else:
            value = at_tier(claim_settings.get(setting.name, setting.default), tier)
        values[setting.name] = convert(setting, value)
    return values
