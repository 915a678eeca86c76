"""Sentences about a board: who leads, what a newcomer asks first, and reasons to read the numbers with care."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from benchmark.leaderboard.page.board import ATTACK_NAMES, Board, BoardRow
from benchmark.results import significance

_CLEAR = "clear"
"""How the verdict of the masking checks begins where none failed."""
_FEW_IMAGES = 1000
"""Number of test images below which the page says how wide an interval is."""
_LISTED = 4
"""Largest number of names in one sentence."""


@dataclass(frozen=True)
class Answer:
    """An answer to what a newcomer asks first."""

    question: str
    section: str
    """Name of the section of the page that shows more."""
    short: str
    long: str
    tone: str
    """One of good, bad, open (nobody knows) and plain."""


def leader(board: Board) -> str:
    """Return who leads a board, in a few words."""
    if not board.contenders:
        return "no rows yet"
    row, score = board.contenders[0]
    return f"{row.name} leads: {score.mean:.1f} % under {board.attack}"


def size(board: Board) -> str:
    """Return the numbers of rows and entries."""
    rows, entries = len(board.rows), sum(len(row.runs) for row in board.rows)
    return f"{rows} row{'' if rows == 1 else 's'}, {entries} entr{'y' if entries == 1 else 'ies'}"


def headline(board: Board) -> str:
    """Return who leads the board, by how much, whether that is significant, and whether masking is suspected."""
    if not board.contenders:
        return "Nothing is measured yet."
    best, score = board.contenders[0]
    under = "on clean images; no attack was measured" if board.decisive == "clean" else f"under {board.attack}"
    text = f"{best.name} leads with {score.text} % {under} (95 % interval {_span(score.low, score.high)})"
    if len(board.contenders) > 1:
        second, other = board.contenders[1]
        text += f", {score.mean - other.mean:.1f} points ahead of {second.name} ({_significance(board).short})"
    return f"{text}. Gradient masking: {_masking(board).short}."


def answers(board: Board) -> list[Answer]:
    """Return who wins, by how much, whether that is significant, whether masking is suspected, and the samples."""
    if not board.contenders:
        return []
    return [_winner(board), _lead(board), _significance(board), _masking(board), _samples(board)]


def _winner(board: Board) -> Answer:
    best, score = board.contenders[0]
    what = (
        "are classified correctly without attack; no attack was measured"
        if board.decisive == "clean"
        else f"withstand {board.attack}"
    )
    over = f"mean ± standard deviation over {score.seeds} seeds" if score.seeds > 1 else "one seed"
    long = f"{score.text} % of {best.runs[0].data.n} test images {what} ({over}; 95 % interval "
    long += f"{_span(score.low, score.high)})."
    if board.decisive != "autoattack":
        long += " No row has AutoAttack, so this is an upper bound only."
    return Answer("Who wins?", "leaderboard", f"{best.name}, {score.mean:.1f} %", long, "good")


def _lead(board: Board) -> Answer:
    answer = partial(Answer, "By how much?", "tradeoff")
    if len(board.contenders) < 2:
        return answer("no rival", "No other row was measured like this one.", "open")
    (best, score), (second, other) = board.contenders[:2]
    long = f"{second.name} comes next with {other.text} %."
    clean = [(found.mean, row, held) for row, held in board.contenders if (found := row.score("clean")) is not None]
    own = best.score("clean")
    if own is not None and board.decisive != "clean":
        most, accurate, held = max(clean, key=lambda item: item[0])
        if accurate is best:
            long += f" It also has the highest clean accuracy, {own.mean:.1f} %."
        else:
            long += (
                f" {accurate.name} has the highest clean accuracy: {most:.1f} %, {most - own.mean:.1f} points more "
                f"than {best.name}, but {held.mean:.1f} % under {board.attack}."
            )
    return answer(f"{score.mean - other.mean:.1f} points", long, "plain")


def _significance(board: Board) -> Answer:
    answer = partial(Answer, "Is the lead significant?", "significance")
    if len(board.contenders) < 2:
        return answer("no rival", "No other row was measured like this one.", "open")
    (best, score), (second, other) = board.contenders[:2]
    found = board.paired_difference(best, second)
    if found is None or not best.ties or not second.ties:
        overlap = (other.high or 0) >= (score.low or 0)
        long = (
            f"A paired test needs the outcome of each image, which these entries do not keep. The 95 % intervals of "
            f"{best.name} and {second.name} {'overlap' if overlap else 'do not overlap'} "
            f"({_span(score.low, score.high)} and {_span(other.low, other.high)})."
        )
        return answer("not tested", long, "open")
    long = f"{best.name} minus {second.name}: {_span(found.low, found.high)} points (95 %), "
    long += f"p = {_p(found.p)} by {found.test}. "
    if not set(best.ties) & set(second.ties):
        long += "It stays significant when corrected for the number of pairs in the table."
        return answer("significant", long, "good")
    tied = [row.name for row, _ in board.contenders[1:] if set(row.ties) & set(best.ties)]
    long += f"Not distinguishable from {best.name}, corrected for the number of pairs: {listed(tied)}."
    return answer("not significant", long, "open")


def _masking(board: Board) -> Answer:
    answer = partial(Answer, "Is masking suspected?", "masking")
    checked = [row for row in board.rows if row.text("masking")]
    if not checked:
        long = "No entry of this table has the checks for gradient masking."
        return answer("not measured", f"{long} AutoAttack's own warnings are among the flags.", "open")
    suspects = [row for row in checked if not row.text("masking").startswith(_CLEAR)]
    unchecked = board.names_without(lambda row: row in checked)
    rest = f" Without a verdict: {listed(unchecked)}." if unchecked else ""
    best, _ = board.contenders[0]
    if not suspects:
        return answer("not suspected", f"Every check is clear for all {len(checked)} rows.{rest}", "good")
    reasons = [f"{row.name}: {row.text('masking')}" for row in suspects]
    long = f"{'; '.join(reasons[:_LISTED])}{_more(reasons)}.{rest}"
    if best in suspects:
        return answer("suspected of the leader", long, "bad")
    verdict = f"{best.name} is {'clear' if best in checked else 'without a verdict'}"
    return answer(f"{verdict}, {len(suspects)} suspect", long, "good" if best in checked else "open")


def _samples(board: Board) -> Answer:
    answer = partial(Answer, "What do the samples look like?", "samples")
    best, _ = board.contenders[0]
    score, start = best.score("generation_agreement"), best.score("generation_agreement_start")
    if score is None:
        return answer("not measured", f"No generated images of {best.name} were measured.", "open")
    long = (
        f"The reference classifier recognises the wanted class in this share of the images that {best.name} generates"
    )
    long += f"; before any step it does so in {start.mean:.1f} %, so look at the pictures." if start else "."
    distances = [(distance.mean, row) for row in board.rows if (distance := row.score("fid_ref"))]
    if distances:
        _, nearest = min(distances, key=lambda item: item[0])
        long += f" Nearest to the training images is {nearest.name} (fid_ref {nearest.text('fid_ref')})."
    return answer(f"{score.mean:.1f} % recognised", long, "plain")


def warnings(board: Board) -> list[str]:
    """Return the reasons to read the board with care, a sentence each."""
    rows = board.rows
    budgets = Counter(str(row.runs[0].training.get("budget") or "") for row in rows)
    found = [f"Training budget of {_share(count, len(rows))}: {text}." for text, count in budgets.items() if text]
    if partial := [row for row in rows if row.partial]:
        sizes = sorted({row.partial for row in partial})
        found.append(f"Partial, measured on the first {' or '.join(sizes)} test images only: {_among(partial, rows)}.")
    n = max((row.runs[0].data.n for row in rows), default=_FEW_IMAGES)
    if n < _FEW_IMAGES:
        low, high = significance.wilson(n // 2, n)
        found.append(f"Few test images: from {n}, an accuracy near 50 % is known to ± {(high - low) / 2:.1f} points.")
    if single := [row for row in rows if len(row.runs) == 1 and row.runs[0].seed is not None]:
        found.append(f"A single seed, so that nothing is known of other trainings: {_among(single, rows)}.")
    for column in ("autoattack", "pgd20"):
        fewer = [row for row in rows if (score := row.score(column)) and score.seeds < len(row.runs)]
        if fewer:
            found.append(f"{ATTACK_NAMES[column]} for some of the seeds only: {_among(fewer, rows)}.")
    without = [row for row in rows if row.score("autoattack") is None]
    if without and len(without) == len(rows):
        found.append("No row has AutoAttack: accuracies under other attacks are upper bounds, and often loose ones.")
    elif without:
        found.append(f"Without AutoAttack, and ranked behind those that have it: {_among(without, rows)}.")
    if failed := [
        row for row in rows if any(m.status == "failed" for run in row.runs for m in run.measurements.values())
    ]:
        found.append(f"A metric failed: {_among(failed, rows)}.")
    if collapsed := [row for row in rows if row.collapsed]:
        found.append(f"A training collapsed and was stopped; measured on older weights: {_among(collapsed, rows)}.")
    if dirty := [row for row in rows if any(run.provenance.get("dirty") for run in row.runs)]:
        found.append(f"Measured with uncommitted changes in the code: {_among(dirty, rows)}.")
    return found


def citation(board: Board) -> str:
    """Return how to cite a board: its protocol, and the commits that its entries were measured with."""
    recorded = (run.provenance.get("commit") for row in board.rows for run in row.runs)
    commits = sorted({str(commit)[:12] for commit in recorded if commit})
    return (
        f"Trilemma, {board.title}, protocol {board.protocol.id} (hash {board.protocol.hash}), entries of "
        f"{f'commit {listed(commits)}' if commits else 'an unrecorded commit'}."
    )


def listed(names: Sequence[str]) -> str:
    """Return names as a list that stays short."""
    return ", ".join(names[:_LISTED]) + _more(names)


def _more(items: Sequence[object]) -> str:
    return f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""


def _among(chosen: Sequence[BoardRow], rows: Sequence[BoardRow]) -> str:
    """Return the chosen rows by name, or that they are all."""
    return f"all {len(rows)} rows" if len(chosen) == len(rows) > 1 else listed([row.name for row in chosen])


def _share(count: int, of: int) -> str:
    return f"all {of} rows" if count == of > 1 else f"{count} of {of} rows"


def _span(low: float | None, high: float | None) -> str:
    return "unknown" if low is None or high is None else f"{low:.1f} to {high:.1f}"


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else f"{p:.0e}"
