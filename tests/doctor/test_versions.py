"""Versions, ranges, requirements and markers, against ``packaging``."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from packaging.markers import Marker
from packaging.specifiers import SpecifierSet
from packaging.version import Version as Oracle

from navsim_recogdrive.doctor.versions import Requirement, UnreadableVersion, Version, satisfies

_numbers = st.lists(st.integers(0, 12), min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts)))
_versions = st.builds(
    "{}{}{}{}{}{}".format,
    st.sampled_from(["", "", "", "1!"]),
    _numbers,
    st.sampled_from(["", "", "", "a1", "b2", "rc1", "-preview.3", ".c"]),
    st.sampled_from(["", "", "", ".post1", "-2"]),
    st.sampled_from(["", "", "", ".dev0", "dev4"]),
    st.sampled_from(["", "", "+cpu", "+cu128"]),
)
_public = _versions.map(lambda text: text.split("+")[0])


@settings(deadline=None)
@given(_versions, _versions)
def test_order_is_that_of_packaging(left: str, right: str) -> None:
    a, b = Version.parse(left).public, Version.parse(right).public
    oracle_a, oracle_b = Oracle(Oracle(left).public), Oracle(Oracle(right).public)
    assert (a < b, a == b) == (oracle_a < oracle_b, oracle_a == oracle_b)


@settings(deadline=None)
@given(_versions, st.sampled_from(["==", "!=", "<=", ">=", "<", ">"]), _public)
def test_ranges_are_those_of_packaging(version: str, operator: str, limit: str) -> None:
    # What is below a post-release or above a pre-release differs between versions of packaging; nobody writes that.
    assume(not {"<": Oracle(limit).is_postrelease, ">": Oracle(limit).is_prerelease}.get(operator))
    specifier = operator + limit
    assert satisfies(version, specifier) == SpecifierSet(specifier).contains(version, prereleases=True)


@settings(deadline=None)
@given(_versions, st.sampled_from(["==4.9.*", "!=1.*", "~=2.3", "~=1.26.4", ">=1.26.4,<3", "", "<3, >=2", "===2.0"]))
def test_prefixes_and_lists_are_those_of_packaging(version: str, specifier: str) -> None:
    assert satisfies(version, specifier) == SpecifierSet(specifier).contains(version, prereleases=True)


@pytest.mark.parametrize(
    "marker",
    [
        'python_version < "3.14"',
        'python_version >= "3.9" and python_version < "3.10"',
        'sys_platform == "win32" or (os_name == "posix" and platform_system != "Windows")',
        '"3.9" <= python_version',
        'python_full_version < "3.10.1"',
        'extra == "navsim"',
        'extra == "Two_Words" and platform_machine != "arm64"',
        'implementation_name in "cpython pypy"',
    ],
)
@pytest.mark.parametrize("extra", ["", "navsim", "two-words"])
def test_markers_are_those_of_packaging(marker: str, extra: str) -> None:
    assert Requirement("x", "", marker).applies(extra) == Marker(marker).evaluate({"extra": extra})


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("numpy<3,>=1.26.4", ("numpy", "<3,>=1.26.4", "")),
        ("omegaconf (<2.4,>=2.2)", ("omegaconf", "<2.4,>=2.2", "")),
        ('fsspec[http]>=2022.5.0; extra == "navsim"', ("fsspec", ">=2022.5.0", 'extra == "navsim"')),
        ("tqdm", ("tqdm", "", "")),
        ("navsim @ git+ssh://host/navsim", ("navsim", "", "")),
    ],
)
def test_requirements_are_read(line: str, expected: tuple[str, str, str]) -> None:
    found = Requirement.parse(line)
    assert (found.name, found.specifier, found.marker) == expected


@pytest.mark.parametrize("text", ["", "none", "1.x", "1..2"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(UnreadableVersion, match="is not a version"):
        satisfies(text, ">=1")


@pytest.mark.parametrize("marker", ["python_version", "unknown == '1'", "python_version <", "__import__('os')"])
def test_what_is_no_marker_is_refused(marker: str) -> None:
    with pytest.raises(UnreadableVersion, match="is not a marker"):
        Requirement("x", "", marker).applies()
