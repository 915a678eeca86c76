"""Who leads, by how much, whether that is luck, and what to be careful about."""

from collections.abc import Callable

from benchmark.leaderboard.page.board import Board
from benchmark.leaderboard.page.sentences import answers, headline, warnings
from benchmark.results.entry import Entry

Make = Callable[..., Entry]
Row = Callable[..., list[Entry]]
Boards = Callable[..., Board]


def test_the_headline_answers_a_newcomer(robust: Row, board_of: Boards) -> None:
    rows = [*robust("trades", 60.0, 62.0), *robust("pgd_at", 20.0, 21.0), *robust("jem", 5.0, 6.0)]
    board = board_of(*rows)
    text = headline(board)
    assert text.startswith("trades leads with 61.00 ± 1.41 % under AutoAttack (95 % interval 5")
    assert "40.5 points ahead of pgd_at (significant)" in text
    assert text.endswith("Gradient masking: trades is clear, 1 suspect.")
    assert [answer.short for answer in answers(board)] == [
        *("trades, 61.0 %", "40.5 points", "significant", "trades is clear, 1 suspect", "97.0 % recognised")
    ]
    assert [answer.tone for answer in answers(board)] == ["good", "plain", "good", "good", "plain"]


def test_a_lead_by_luck_is_not_called_significant(robust: Row, board_of: Boards) -> None:
    board = board_of(*robust("trades", 60.0, 62.0), *robust("pgd_at", 59.0, 61.0))
    answer = answers(board)[2]
    assert answer.short == "not significant"
    assert "Not distinguishable from trades, corrected for the number of pairs: pgd_at." in answer.long


def test_without_outcomes_nothing_is_called_significant(robust: Row, board_of: Boards) -> None:
    kept, lost = robust("trades", 60.0), robust("pgd_at", 10.0, kept=False)
    for entries in ([*kept, *lost], [*robust("trades", 60.0, kept=False), *lost]):
        answer = answers(board_of(*entries))[2]
        assert answer.short == "not tested"
        assert "do not overlap" in answer.long


def test_a_suspected_winner_is_said_first(robust: Row, board_of: Boards) -> None:
    answer = answers(board_of(*robust("jem", 80.0), *robust("trades", 60.0)))[3]
    assert (answer.short, answer.tone) == ("suspected of the leader", "bad")
    assert answer.long == "jem: suspect: zero gradient."


def test_no_attack_no_claim(entry: Make, board_of: Boards) -> None:
    board = board_of(entry("standard", values={"clean": 95.0}))
    assert headline(board).startswith("standard leads with 95.00 % on clean images; no attack was measured")
    assert "upper bound" in answers(board)[0].long
    pgd = board_of(entry("standard", values={"clean": 95.0, "pgd20": 40.0}))
    assert "under PGD-20" in headline(pgd)
    assert "No row has AutoAttack, so this is an upper bound only." in answers(pgd)[0].long


def test_warnings_name_what_to_be_careful_about(entry: Make, robust: Row, board_of: Boards) -> None:
    budget = {"training": {"budget": "scaled down: 1 epoch"}}
    rows = [
        entry("trades", values={"clean": 90.0, "autoattack": 50.0}, **budget),
        entry("trades", seed=1, values={"clean": 90.0}, **budget),
        entry("pgd_at", n=40, values={"clean": 80.0}, provenance={"dirty": True}),
        *robust("jem", 5.0),
    ]
    text = " ".join(warnings(board_of(*rows)))
    assert "Training budget of 1 of 3 rows: scaled down: 1 epoch." in text
    assert "Partial, measured on the first 40 of 100 test images only: pgd_at." in text
    assert "from 100, an accuracy near 50 % is known to ± 9.6 points" in text
    assert "A single seed, so that nothing is known of other trainings: jem, pgd_at." in text
    assert "AutoAttack for some of the seeds only: trades." in text
    assert "Without AutoAttack, and ranked behind those that have it: pgd_at." in text
    assert "A training collapsed and was stopped; measured on older weights: jem." in text
    assert "Measured with uncommitted changes in the code: pgd_at." in text


def test_a_part_of_the_images_does_not_win(entry: Make, board_of: Boards) -> None:
    board = board_of(entry("trades", n=20, values={"autoattack": 99.0}), entry("pgd_at", values={"autoattack": 50.0}))
    assert headline(board).startswith("pgd_at leads")
    assert answers(board)[1].short == "no rival"
