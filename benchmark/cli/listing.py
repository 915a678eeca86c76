"""The command ``list``."""

from typing import Annotated

import typer

from methods.errors import InputError, nearest

KINDS = ("methods", "recipes", "datasets", "protocols", "metrics", "ablations", "paper", "scales")


commands = typer.Typer()


@commands.command("list")
def list_names(kind: Annotated[str | None, typer.Argument(help=" | ".join(KINDS))] = None) -> None:
    """Show the methods, recipes, datasets, protocols, metrics, ablations, and what can be reproduced of the paper."""
    if kind is not None and kind not in KINDS:
        raise InputError(f'There is no list of "{kind}".{nearest(kind, KINDS)} Choose from: {", ".join(KINDS)}.')
    for shown in KINDS if kind is None else (kind,):
        if kind is None:
            typer.echo(f"{shown}:")
        for line in _lines(shown):
            typer.echo(line if kind else f"  {line}")


def _lines(kind: str) -> list[str]:
    if kind == "methods":
        import methods

        return methods.names()
    if kind == "datasets":
        from methods.data.catalogue import NAMES

        return _columns(NAMES)
    if kind == "metrics":
        from benchmark.specs import registry

        return registry.names()
    from benchmark.specs import recipes

    if kind == "paper":
        return _columns({name: recipes.read_yaml(path).get("title", "") for name, path in recipes.papers().items()})
    folders = {"recipes": recipes.recipes, "protocols": recipes.protocols}
    folders |= {"ablations": recipes.ablations, "scales": recipes.scales}
    return list(folders[kind]())


def _columns(described: dict[str, str]) -> list[str]:
    width = max(map(len, described))
    return [f"{name:<{width}}  {description}" for name, description in described.items()]
