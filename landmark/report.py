"""`landmark report`: a study or run becomes a page and tables; a study is printed beside the deck's summary."""

from collections.abc import Sequence

from landmark.cli import end, run_verb
from landmark.config import ReportConfig
from landmark.reporting.deck import deck_text
from landmark.reporting.report import write_deck, write_report
from landmark.reporting.tables import as_text, read_csv
from landmark.storage import Location, check_writable, locate


def report(config: ReportConfig) -> Location:
    """Write the page and tables, print the summary, and say where they lie; returns the place of the page or summary."""
    run = locate(str(config.run or config.deck))
    output = locate(config.output) if config.output else run / "report"
    if run.exists():
        check_writable(output)
    if config.deck:
        place, table = write_deck(run, output)
        print(deck_text(table))
        print(f"deck: {place}")
        return place
    page = write_report(run, output, cleaned=config.cleaned, price_per_hour=config.price_per_hour)
    if (output / "model_summary.csv").exists():
        summary = read_csv(output / "model_summary.csv")
        print(as_text(summary, ["val_top1", "test_top1", "test_top5", "test_top10"]))
    print(f"report: {page}")
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit code."""
    return run_verb(ReportConfig, report, argv)


if __name__ == "__main__":
    end(main())
