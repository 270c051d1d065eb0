"""What each of the commands `canary service …` takes."""

from typing import Annotated

import typer

from server.cli.commands import SettingsCommand

service = typer.Typer(no_args_is_help=True, help="Run `canary serve` in the background, starting at log-in.")


@service.command(cls=SettingsCommand)
def install(
    ctx: typer.Context,
    print_only: Annotated[
        bool, typer.Option("--print", help="Show the service's file; install and change nothing.")
    ] = False,
) -> None:
    """Install and start the service: a launchd agent on macOS, a user unit of systemd on Linux.

    The settings given here, in the environment and in a file named .env are stored for it, keys included, in a file
    that only you can read. Run this again to change settings; those not given stay as they are.
    """
    from server.cli.service.command import install

    install(ctx.obj, print_only)


@service.command()
def uninstall() -> None:
    """Stop the service and remove it. Its settings and models stay."""
    from server.cli.service.command import uninstall

    uninstall()


@service.command()
def status() -> None:
    """Show whether the service is running and ready. The exit code is 1 if it is not running."""
    from server.cli.service.command import status

    if not status():
        raise typer.Exit(1)


@service.command()
def logs(
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=1, metavar="NUMBER", help="Number of lines to show, from the end.")
    ] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep showing new lines until Ctrl-C.")] = False,
) -> None:
    """Show the service's log."""
    from server.cli.service.command import show_logs

    if code := show_logs(lines, follow):
        raise typer.Exit(code)
