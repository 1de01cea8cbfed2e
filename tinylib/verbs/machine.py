"""Verbs of this machine: doctor, course."""

from __future__ import annotations

from tinylib.flags import parse
from tinylib.verbs import Result


def doctor(arguments: list[str]) -> Result:
    """what this machine has, what is missing, and what to do about it"""
    return parse(_doctor, arguments)


def _doctor() -> Result:
    """What this machine has, what is missing, and what to do about it; exit code 1 if the course can't run."""

    checks = doctor.doctor()
    for check in checks:
        print(f"{check.state:<8} {check.name:<10} {check.detail}")
    return {"ok": all(check.state != "error" for check in checks), "checks": [vars(check) for check in checks]}


def course(arguments: list[str]) -> Result:
    """run the notebooks in order; ends with a report and a table"""
    return parse(_course, arguments)


def _course(profile: str | None = None) -> Result:
    """Run the notebooks in order in PROFILE: smoke, cpu or gpu, by default what fits this machine."""
    from tinylib import course

    return course.run(profile)
