# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that are known by name and one line, and whose module is loaded when they are called.

Most of the lab's start-up is what its commands import. A list of commands, or a mistyped one, needs none of it.
"""

import importlib
from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


def clear_flags(params: Iterable[Any]) -> None:
    """Have flags that nobody gave be False.

    Typer leaves its own flags None, and loads pydantic to find out that None is no value: a third of the start-up.
    """
    for param in params:
        if getattr(param, "is_flag", False) and param.default is None:
            param.default = False


class LightCommand(TyperCommand):
    """A command whose ``--help`` costs nothing where it is not given."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return the option, which is False where it is not given."""
        option = super().get_help_option(ctx)
        clear_flags([option])
        return option


class LightGroup(TyperGroup):
    """The same for a group."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return the option, which is False where it is not given."""
        option = super().get_help_option(ctx)
        clear_flags([option])
        return option


class Deferred(TyperCommand):
    """Stands for a command, or a group of commands, until its arguments are to be read."""

    def __init__(self, name: str, where: str, summary: str) -> None:
        """Note where the command is.

        :param where: ``module:attribute`` of a function, or of a :class:`typer.Typer` that has commands of its own
        :param summary: the first line of its help
        """
        super().__init__(name, help=summary, rich_markup_mode=None)
        self.where = where

    # Typer asks the command that it has found for the context, and from then on only knows the context's own.
    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Read the arguments as the command itself does."""
        return self.load().make_context(info_name, args, parent, **extra)

    def load(self) -> TyperCommand | TyperGroup:
        """Import the command."""
        module, _, attribute = self.where.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, typer.Typer):
            group = typer.main.get_group(found)
            group.name, group.help = self.name, self.help
            return group
        alone = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
        alone.command(self.name, cls=LightCommand)(found)
        command = typer.main.get_command(alone)
        assert isinstance(command, TyperCommand)
        return command
