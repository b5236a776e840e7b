"""The digest: what is new for a subscriber, as a mail, sent once a period."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from paperworks.feed.addresses import checked_base_url, checked_sender, one_line
from paperworks.feed.delivery import BOUNCES, Delivery, Ledger, due_period, outcome
from paperworks.feed.letters import message, subscription_headers
from paperworks.feed.mail import Unavailable
from paperworks.feed.picks import Change, Pick, Round
from paperworks.feed.preferences import Preferences
from paperworks.feed.ranking import check_aware
from paperworks.feed.records import PaperRecord, plain_title
from paperworks.feed.store import Store
from paperworks.feed.subscriptions import Subscriber, Subscriptions
from paperworks.feed.verdicts import Verdicts
from paperworks.lab.records import STATUSES
from paperworks.lab.report.wording import MONTHS, plural

if TYPE_CHECKING:
    from paperworks.feed.search import Search

__all__ = ["Delivery", "Digest", "Transport"]

log = logging.getLogger(__name__)

FIRST = {"daily": timedelta(days=1), "weekly": timedelta(days=7)}
"""How far the first digest looks back."""

AWAY = 3
"""Times in a row that the server is away after which a run ends."""

MOST_CHANGES = 10
LONGEST_SUBJECT = 120
LONGEST_TEXT = 320
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
VERBS = {"holds": ("holds", "hold"), "fails": ("fails", "fail"), "inconclusive": ("open", "open"),
         "not run": ("not run", "not run"), "error": ("error", "errors")}  # fmt: skip


class Transport(Protocol):
    """What a digest is sent with."""

    def send(self, message: EmailMessage, /) -> object:
        """Send it, or raise."""


@dataclass(frozen=True)
class _Issue:
    message: EmailMessage
    picks: list[Pick]
    changes: list[Change]


class Digest:
    """Builds and sends the digests of all subscribers. Processes may run at once: a digest is sent by one of them.

    Args:
        store, search, subscriptions: of the feed.
        base_url: address of the site, which the links lead to; https for one-click unsubscribing.
        sender: ``Name <papers@example.org>``.
        verdicts: of the papers' claims; by default those of the store.

    Raises ValueError for a malformed `base_url` or `sender`.
    """

    def __init__(
        self,
        store: Store,
        search: Search,
        subscriptions: Subscriptions,
        *,
        base_url: str,
        sender: str,
        verdicts: Verdicts | None = None,
    ) -> None:
        checked_sender(sender)
        self.store, self.search, self.subscriptions = store, search, subscriptions
        self.base_url, self.sender = checked_base_url(base_url), sender
        self.verdicts = Verdicts(store) if verdicts is None else verdicts
        self._ledger = Ledger(store)

    def build(self, subscriber: Subscriber, now: datetime) -> EmailMessage | None:
        """The digest of what is new for a subscriber at `now`; None where nothing is. Nothing is sent or kept.

        Raises ValueError for a naive time.
        """
        issue = self._issue(subscriber, self._round(now))
        return None if issue is None else issue.message

    def preview(self, preferences: Preferences, now: datetime) -> EmailMessage:
        """What a subscriber with these preferences would be sent first, to look at; also where nothing is new.

        Its links to unsubscribe and to the preferences lead to no subscriber. Raises ValueError for a naive time.
        """
        round_ = self._round(now)
        address = checked_sender(self.sender).addr_spec
        email = address if "." in address.partition("@")[2] else "reader@example.org"
        reader = Subscriber("preview", email, "preview", preferences)
        since = now - FIRST[preferences.frequency]
        issue = _Issue(EmailMessage(), round_.picks(preferences, since), round_.changes(preferences, since))
        return self._message(reader, issue, now)

    def send(self, transport: Transport, now: datetime, dry_run: str | Path | None = None) -> list[Delivery]:
        """Send every active subscriber the digest that is due to them, and say what became of each.

        A subscriber to whom nothing is due, or for whom nothing is new, is not in the answer. What goes wrong with one
        does not keep the others from theirs; after the server was away three times in a row the run ends, and the rest
        stays due.

        Args:
            transport: an object with ``send(message)``.
            now: timezone-aware; decides what is due and what is new.
            dry_run: a folder; the messages are written there as ``.eml``, nothing is sent or kept.

        Raises ValueError for a naive time.
        """
        round_, found, away = self._round(now), [], 0
        for subscriber in self.subscriptions.active():
            try:
                told = self._serve(subscriber, transport, round_, None if dry_run is None else Path(dry_run))
            except Unavailable as error:
                period = due_period(subscriber.preferences, now, subscriber.confirmed) or ""
                told, away = [Delivery(subscriber.id, subscriber.email, period, "later", reason=str(error))], away + 1
            except Exception as error:
                log.exception("digest of subscriber %s", subscriber.id)
                period = due_period(subscriber.preferences, now, subscriber.confirmed) or ""
                reason = f"{type(error).__name__}: {error}"
                told = [Delivery(subscriber.id, subscriber.email, period, "later", reason=reason)]
            else:
                away = 0 if told else away
            found += told
            if away == AWAY:
                log.error("the mail server is away; the run ends")
                break
        return found

    # one subscriber

    def _round(self, now: datetime) -> Round:
        check_aware("now", now)
        return Round(self.store, self.search, self.verdicts, now)

    def _serve(
        self, subscriber: Subscriber, transport: Transport, round_: Round, folder: Path | None
    ) -> list[Delivery]:
        told = [] if folder else self._ledger.interrupted(subscriber.id, subscriber.email, round_.now)
        period = due_period(subscriber.preferences, round_.now, subscriber.confirmed)
        if period is None or self._ledger.has(subscriber.id, period):
            return told
        issue = self._issue(subscriber, round_)
        if issue is None:
            return told
        delivery = Delivery(
            subscriber.id, subscriber.email, period, "sent", str(issue.message["Message-ID"]),
            tuple(pick.paper.key for pick in issue.picks),
        )  # fmt: skip
        if folder is not None:
            return [self._write(delivery, issue.message, folder)]
        numbers = [pick.number for pick in issue.picks]
        row = self._ledger.claim(subscriber.id, period, delivery.message_id, numbers, round_.now)
        if row is None:
            return told
        return [*told, self._send(delivery, row, transport, issue.message, round_.now)]

    def _send(self, delivery: Delivery, row: int, transport: Transport, mail: EmailMessage, now: datetime) -> Delivery:
        """Send the message of a claimed row. An interrupt goes through and leaves the row as it is."""
        try:
            transport.send(mail)
        except Exception as error:
            status, reason = outcome(error)
            if status == "later":
                self._ledger.release(row)
                if isinstance(error, Unavailable):
                    raise
            elif status == "unknown":
                self._ledger.uncertain(row, reason, now)
            else:
                self._ledger.failed(row, reason, now)
                if self._ledger.bounced(delivery.subscriber):
                    why = f"the mailbox was refused {BOUNCES} times in a row, last: {reason}"
                    self.subscriptions.suppress(delivery.email, why, now)
            return replace(delivery, status=status, reason=reason)
        try:
            self._ledger.sent(row, now)
        except Exception as error:  # the row stays as it is, and the next run tells of it
            log.exception("digest of subscriber %s was sent and could not be recorded", delivery.subscriber)
            return replace(delivery, status="unknown", reason=f"sent, but not recorded: {error}")
        return delivery

    def _write(self, delivery: Delivery, mail: EmailMessage, folder: Path) -> Delivery:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{delivery.period}-{delivery.subscriber[:12]}.eml"
        path.write_bytes(mail.as_bytes())
        return replace(delivery, status="dry run", reason=str(path))

    # the message

    def _issue(self, subscriber: Subscriber, round_: Round) -> _Issue | None:
        last, sent = self._ledger.delivered(subscriber.id)
        since = round_.now - FIRST[subscriber.preferences.frequency] if last is None else last
        picks = round_.picks(subscriber.preferences, since, sent)
        changes = round_.changes(subscriber.preferences, since)
        if not picks and not changes:
            return None
        issue = _Issue(EmailMessage(), picks, changes)
        return replace(issue, message=self._message(subscriber, issue, round_.now))

    def _message(self, subscriber: Subscriber, issue: _Issue, now: datetime) -> EmailMessage:
        preferences, token = subscriber.preferences, subscriber.unsubscribe_token
        local = now.astimezone(preferences.zone)
        period = due_period(preferences, now) or ""
        mail = message(
            subscriber.email, _subject(issue), "digest", sender=self.sender, now=now, key=f"{subscriber.id} {period}",
            site=self.base_url, host=self.base_url.partition("://")[2], heading=_heading(local.date(), preferences),
            lead=_lead(issue), papers=[self._entry(pick) for pick in issue.picks],
            changes=[self._change(change) for change in issue.changes[:MOST_CHANGES]],
            more_changes=max(0, len(issue.changes) - MOST_CHANGES), because=_because(preferences),
            email=subscriber.email, unsubscribe=f"{self.base_url}/u/{quote(token, safe='')}",
            preferences=f"{self.base_url}/preferences/{quote(token, safe='')}",
        )  # fmt: skip
        subscription_headers(mail, sender=self.sender, base_url=self.base_url, unsubscribe_token=token)
        return mail

    def _url(self, paper: PaperRecord) -> str:
        return f"{self.base_url}/paper/{quote(paper.key, safe='/')}"

    def _entry(self, pick: Pick) -> dict[str, Any]:
        paper = pick.paper
        counts = self.verdicts.counts(paper.card)
        return {
            "title": one_line(plain_title(paper.title)),
            "url": self._url(paper),
            "facts": _facts(paper, pick.votes) + (["not carried yet"] if paper.card and counts is None else []),
            "why": "; ".join(pick.reasons),
            "text": _excerpt(one_line(paper.summary or paper.abstract), LONGEST_TEXT),
            "verdicts": _verdicts(counts),
        }

    def _change(self, change: Change) -> dict[str, Any]:
        return {
            "title": one_line(plain_title(change.paper.title)),
            "url": self._url(change.paper),
            "sentence": one_line(change.sentence),
            "before": change.before,
            "after": change.after,
            "tier": change.tier,
        }


def _subject(issue: _Issue) -> str:
    papers, changes = len(issue.picks), len(issue.changes)
    changed = "" if not changes else "a verdict changed" if changes == 1 else f"{changes} verdicts changed"
    if papers:
        named = plain_title(issue.picks[0].paper.title)
        start = plural(papers, "new paper") + (f", {changed}" if changed else "")
    elif changes:
        named = plain_title(issue.changes[0].paper.title)
        start = changed[0].upper() + changed[1:]
    else:
        return "Nothing new"
    return _shortened(one_line(f"{start}: {named}"), LONGEST_SUBJECT)


def _heading(day: date, preferences: Preferences) -> str:
    written = f"{day.day} {MONTHS[day.month - 1]} {day.year}"
    return f"Week to {written}" if preferences.frequency == "weekly" else f"{DAYS[day.weekday()]}, {written}"


def _lead(issue: _Issue) -> str:
    count = len(issue.changes)
    changes = "" if not count else "a verdict that changed" if count == 1 else f"{count} verdicts that changed"
    if not issue.picks:
        return f"No new papers, but {changes}." if changes else "Nothing is new."
    return f"{plural(len(issue.picks), 'new paper')} for you" + (f", and {changes}." if changes else ".")


def _facts(paper: PaperRecord, votes: int) -> list[str]:
    facts = [paper.area] if paper.area else []
    if paper.authors and paper.n_authors == 1:
        facts.append(one_line(paper.authors[0]))
    elif paper.n_authors:
        facts.append(plural(paper.n_authors, "author"))
    if paper.published:
        day = paper.published
        facts.append(f"{day.day} {MONTHS[day.month - 1][:3]} {day.year}")
    if votes:
        facts.append(plural(votes, "vote"))
    if paper.code:
        facts.append("code")
    return facts


def _verdicts(counts: Mapping[str, int] | None) -> list[dict[str, Any]]:
    if counts is None:
        return []
    return [
        {"status": status, "count": counts[status], "words": VERBS[status][counts[status] != 1]}
        for status in STATUSES
        if counts.get(status)
    ]


def _because(preferences: Preferences) -> str:
    """Why the subscriber gets this, in one sentence."""
    start = f"You asked for a {preferences.frequency} digest"
    wanted = [f"“{query}”" for query in preferences.queries] + [f"the area {area}" for area in preferences.areas]
    if not wanted:
        return f"{start} of the papers that are read most."
    shown = wanted[:4] + ([f"{len(wanted) - 4} more"] if len(wanted) > 4 else [])
    return f"{start} on {', '.join(shown[:-1])}{' and ' if shown[1:] else ''}{shown[-1]}."


def _excerpt(text: str, longest: int) -> str:
    """The first sentences of `text`, in at most `longest` characters."""
    if len(text) <= longest:
        return text
    end = max(text.rfind(f"{mark} ", 0, longest) for mark in ".!?")
    return text[: end + 1] if end > longest // 2 else _shortened(text, longest)


def _shortened(text: str, longest: int) -> str:
    """`text`, cut between words to at most `longest` characters."""
    if len(text) <= longest:
        return text
    cut = text[: longest - 1]
    start = cut.rpartition(" ")[0]
    return (start if len(start) > longest // 2 else cut).rstrip(" ,;:.") + "…"
