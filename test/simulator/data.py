"""Seeded, realistic data of any size.

The same seed and sizes give the same data relative to the hour the simulator was filled in. Mail addresses use
reserved domains only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any
from zlib import crc32

from clock import DAY_MS, Clock, iso_date, iso_instant
from config import Config, DataOptions
from definitions import LIFECYCLE_STAGES
from store import Properties, Record
from world import World

_HOUR_MS = 3_600_000
_YEARS_MS = 3 * 365 * DAY_MS
_QUIET_MS = 2 * _HOUR_MS  # generated data was last modified at least this long ago

Pairs = list[tuple[str, str]]


def _pairs(text: str) -> Pairs:
    """`native/ascii` words to pairs; plain words stand for both."""
    return [(native, ascii_form or native) for native, _, ascii_form in (word.partition("/") for word in text.split())]


# (share of people, first names, last names)
_SCRIPTS: list[tuple[float, Pairs, Pairs]] = [
    (
        0.46,
        _pairs("Anna Ben Clara David Emma Frank Grace Henry Ines Jonas Kim Laura Martin Nina Oliver Paula Sofia"),
        _pairs("Smith Jones O'Brien/OBrien Taylor van_Dijk/vanDijk Meyer Schmidt Rossi Silva McDonald Novak Wood Hall"),
    ),
    (
        0.24,
        _pairs("Jürgen/Juergen Zoë/Zoe François/Francois Łukasz/Lukasz Søren/Soren Żaneta/Zaneta İbrahim/Ibrahim"
               " Nuño/Nuno Ólafur/Olafur Đorđe/Dorde Thảo/Thao Jose\u0301/Jose"),
        _pairs("Müller/Mueller Weiß/Weiss Núñez/Nunez Brontë/Bronte Kovač/Kovac Škoda/Skoda Øvergård/Overgard"
               " Çelik/Celik Nguyễn/Nguyen Dvořák/Dvorak Châtelain/Chatelain Pérez-Gómez/Perez-Gomez"),
    ),
    (
        0.07,
        _pairs("Анна/Anna Дмитрий/Dmitri Олена/Olena Сергей/Sergei Юлия/Yulia Ђорђе/Djordje"),
        _pairs("Иванов/Ivanov Шевченко/Shevchenko Кузнецова/Kuznetsova Щукин/Shchukin Їжак/Yizhak"),
    ),
    (
        0.05,
        _pairs("Γιώργος/Giorgos Ελένη/Eleni Δημήτρης/Dimitris Σοφία/Sofia"),
        _pairs("Παπαδόπουλος/Papadopoulos Νικολάου/Nikolaou Ιωάννου/Ioannou"),
    ),
    (
        0.05,
        _pairs("محمد/Mohamed فاطمة/Fatima يوسف/Youssef ليلى/Layla"),
        _pairs("الأحمد/Alahmad حسين/Hussein العلي/Alali منصور/Mansour"),
    ),
    (0.03, _pairs("דוד/David שרה/Sarah יעל/Yael"), _pairs("כהן/Cohen לוי/Levi מזרחי/Mizrahi")),
    (
        0.04,
        _pairs("伟/Wei 芳/Fang 秀英/Xiuying 太郎/Taro さくら/Sakura 美咲/Misaki"),
        _pairs("王/Wang 李/Li 歐陽/Ouyang 佐藤/Sato 渡邊/Watanabe 𠮷田/Yoshida"),
    ),
    (0.03, _pairs("민준/Minjun 서연/Seoyeon 지훈/Jihoon"), _pairs("김/Kim 이/Lee 박/Park 최/Choi")),
    (0.03, _pairs("अनिल/Anil प्रिया/Priya राजेश/Rajesh"), _pairs("शर्मा/Sharma सिंह/Singh गुप्ता/Gupta")),
]
_EMOJI = ("🎓", "🌍", "👩‍🏫", "❤️", "🇩🇪")
_DOMAINS = ("example.com", "example.org", "example.net", "school.example", "mail.example", "students.example")
_PHONES = (
    "+49 170 {:07}", "+1 (555) 01{:05}", "0171/{:07}", "+33 1 {:08}", "00441632{:06}", "+7 (495) {:07}",
    "{:010}", "+1-555-{:07} ext. 12", "+81-3-{:08}", "tel:+4930{:06}",
)  # fmt: skip
_PLACES = (
    ("Berlin", "Berlin", "10115", "Germany"), ("München", "Bayern", "80331", "Germany"),
    ("New York", "NY", "10001", "United States"), ("São Paulo", "SP", "01310-100", "Brazil"),
    ("Αθήνα", "Αττική", "105 57", "Greece"), ("Київ", "", "01001", "Ukraine"), ("القاهرة", "", "11511", "Egypt"),
    ("東京", "東京都", "100-0001", "Japan"), ("서울", "", "04524", "South Korea"), ("मुंबई", "MH", "400001", "India"),
    ("Kraków", "", "30-001", "Poland"), ("L'Aquila", "AQ", "67100", "Italy"),
)  # fmt: skip
_COMPANIES = (
    "Nordlicht Schule", "Acme & Söhne", "O'Neill \"Quality\" Ltd.", "Büro für Gestaltung", "東京言語学院",
    "Образование Плюс", "Μάθηση ΑΕ", "Lingua Viva", "Backslash \\ Co", "Example Works", "Tab\tTest", "Kurs <b>GmbH</b>",
)  # fmt: skip
_JOBS = ("Teacher", "Student", "CEO", "Projektleiterin", "Développeur", "教師", "Manager, Sales", None, None, "")
_LEAD_STATUS = ("NEW", "OPEN", "IN_PROGRESS", "OPEN_DEAL", "UNQUALIFIED", "CONNECTED", "BAD_TIMING", None, None)
_LANGUAGES = ("en", "de", "fr", "es", "el", "ru", "ar", "he", "ja", "ko", "hi", None)
_SOURCES = ("ORGANIC_SEARCH", "PAID_SEARCH", "EMAIL_MARKETING", "SOCIAL_MEDIA", "REFERRALS", "OFFLINE")
_SIZES = ("1-5", "5-25", "25-50", "50-100", None, None, "")
_MESSAGES = (
    "I'd like to learn German.\nPlease call me \"soon\".", "¿Cuánto cuesta?", "Zeile 1\r\nZeile 2\tTab", "", "🙏 merci",
    "<p>html & entities</p>", "C:\\path\\file",
)  # fmt: skip
_INDUSTRIES = ("EDUCATION_MANAGEMENT", "E_LEARNING", "COMPUTER_SOFTWARE", "HOSPITAL_HEALTH_CARE", "RETAIL", "BANKING")
_COURSES = ("A1 Intensiv", "B2 Evening", "C1 Prüfung", "Business English", "日本語 N5", "Français débutant")


class Dice:
    """Fast choices from one seeded generator."""

    def __init__(self, seed: str) -> None:
        self.roll = Random(seed).random

    def pick(self, choices: Any) -> Any:
        """One of the choices."""
        return choices[int(self.roll() * len(choices))]

    def number(self, limit: int) -> int:
        """A number below the limit."""
        return int(self.roll() * limit)

    def chance(self, share: float) -> bool:
        """True for the given share of the calls."""
        return self.roll() < share

    def person(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """First and last name, each native and in ASCII."""
        roll = self.roll()
        for share, firsts, lasts in _SCRIPTS:
            roll -= share
            if roll < 0:
                break
        return self.pick(firsts), self.pick(lasts)

    def phone(self) -> str | None:
        """A phone number in one of many formats, empty or null."""
        roll = self.roll()
        if roll < 0.1:
            return "" if roll < 0.02 else None
        pattern: str = self.pick(_PHONES)
        return pattern.format(self.number(1_000_000))

    def amount(self, limit: int) -> str | None:
        """An amount as text, now and then empty or null."""
        roll = self.roll()
        if roll < 0.08:
            return "" if roll < 0.03 else None
        cents = self.number(limit * 100)
        return f"{cents // 100}.{cents % 100:02}" if roll < 0.7 else str(cents // 100)


def fill_world(config: Config, clock: Clock, options: DataOptions) -> World:
    """A new account with the given amounts of data."""
    world = World(config, clock, options.wide)
    latest = clock.now_ms() // _HOUR_MS * _HOUR_MS - _QUIET_MS
    for fields in _owners(options, latest):
        world.owners.add(fields, latest)
    makers: dict[str, Maker] = {
        "contacts": _contact, "companies": _company, "deals": _deal, "tickets": _ticket, "calls": _call,
        "emails": _email, "meetings": _meeting, "notes": _note, "tasks": _task,
    }  # fmt: skip
    for name, make in makers.items():
        count = getattr(options, name)
        table = world.tables[name]
        table.load(list(_records(world, name, make, Dice(f"{options.seed} {name}"), count, latest)))
    owners = world.owners.ids()
    world.tables["contacts"].history.earlier["hubspot_owner_id"] = partial(_earlier_owners, options.seed, owners)
    return world


Maker = Callable[[World, Dice, list[str], int, int], Properties]


def _records(world: World, name: str, make: Maker, dice: Dice, count: int, latest: int) -> Iterator[Record]:
    """Records in the order of their creation, which is the order of their ids."""
    table = world.tables[name]
    owners = world.owners.ids()
    for order, record_id in enumerate(_ids(dice, count)):
        created = latest - _YEARS_MS + int((order + dice.roll()) / count * (_YEARS_MS - DAY_MS))
        modified = created + int(dice.roll() * (latest - created))
        properties = make(world, dice, owners, order, created)
        yield Record(record_id, world.with_derived(table, properties), created, modified)


def _ids(dice: Dice, count: int) -> Iterator[int]:
    """Ascending ids: short ones, long ones, and a fifth that no double can hold exactly."""
    steps = ((0.4, 51, 50), (0.4, 12_000_000_000, 1000), (1.0, (1 << 60) + 1, 1_000_000))
    made = 0
    for share, current, step in steps:
        wanted = min(count - made, max(1, int(count * share)))
        for _ in range(wanted):
            current += 1 + dice.number(step)
            yield current
        made += wanted


def _owners(options: DataOptions, latest: int) -> Iterator[dict[str, Any]]:
    """People and queues with teams; every sixth owner is archived."""
    dice = Dice(f"{options.seed} owners")
    owner_id = 41_629_000
    teams = [{"id": "171", "name": "Beratung"}, {"id": "172", "name": "Équipe Sud"}, {"id": "173", "name": "营业部"}]
    for order in range(options.owners):
        (first, ascii_first), (last, ascii_last) = dice.person()
        owner_id += 1 + dice.number(5000)
        is_queue = order % 8 == 7
        joined = dice.number(len(teams) + 1)
        yield {
            "id": str(owner_id),
            "email": f"{ascii_first}.{ascii_last}{order}@school.example".lower(),
            "type": "QUEUE" if is_queue else "PERSON",
            "firstName": "" if order % 10 == 9 else first,
            "lastName": "" if order % 10 == 9 else last.replace("_", " "),
            "createdAt": iso_instant(latest - _YEARS_MS + order * DAY_MS),
            "updatedAt": iso_instant(latest - order * _HOUR_MS),
            "archived": order % 6 == 5,
            "teams": [{**team, "primary": place == 0} for place, team in enumerate(teams[:joined])],
        }


def _earlier_owners(seed: int, owners: list[str], record_id: int) -> list[str]:
    """One or two earlier owners for a quarter of the contacts; computed, so that they cost no memory."""
    dice = crc32(f"{seed} {record_id}".encode())
    if dice % 4 or not owners:
        return []
    return [owners[(dice >> shift) % len(owners)] for shift in range(3, 4 + (dice >> 2) % 2)]


def _contact(world: World, dice: Dice, owners: list[str], order: int, created: int) -> Properties:
    (first, ascii_first), (last, ascii_last) = dice.person()
    if dice.chance(0.01):
        first = f"{first} {dice.pick(_EMOJI)}"
    email = f"{ascii_first}.{ascii_last}{order}@{dice.pick(_DOMAINS)}".lower()
    city, state, postal, country = dice.pick(_PLACES)
    return {
        "email": None if dice.chance(0.03) else email,
        "firstname": None if dice.chance(0.02) else first,
        "lastname": last.replace("_", " "),
        "phone": dice.phone(),
        "mobilephone": dice.phone() if order % 3 == 0 else None,
        "company": dice.pick(_COMPANIES),
        "jobtitle": dice.pick(_JOBS),
        "website": f"https://www.{ascii_last.lower()}.example/?id={order}" if order % 4 == 0 else None,
        "address": f"Hauptstraße {1 + order % 180}",
        "city": city,
        "state": state,
        "zip": postal,
        "country": country,
        "lifecyclestage": dice.pick(LIFECYCLE_STAGES),
        "hs_lead_status": dice.pick(_LEAD_STATUS),
        "hubspot_owner_id": dice.pick(owners) if owners and dice.chance(0.85) else None,
        "hs_additional_emails": f"{ascii_first}.alt{order}@mail.example".lower() if order % 20 == 0 else None,
        "hs_language": dice.pick(_LANGUAGES),
        "salutation": "Frau" if order % 5 == 0 else None,
        "date_of_birth": iso_date(315_532_800_000 + dice.number(9000) * DAY_MS) if order % 2 else None,
        "industry": "Education" if order % 7 == 0 else "",
        "numemployees": dice.pick(_SIZES),
        "annualrevenue": dice.amount(5_000_000) if order % 6 == 0 else None,
        "hs_email_optout": "true" if dice.chance(0.05) else "false",
        "notes_last_contacted": iso_instant(created + dice.number(DAY_MS)) if order % 2 == 0 else None,
        "num_notes": str(dice.number(40)),
        "num_associated_deals": str(dice.number(4)),
        "hs_analytics_source": dice.pick(_SOURCES),
        "message": dice.pick(_MESSAGES) if order % 9 == 0 else None,
        "hs_timezone": "europe_slash_berlin" if order % 3 else None,
    }


def _company(world: World, dice: Dice, owners: list[str], order: int, created: int) -> Properties:
    city, _, postal, country = dice.pick(_PLACES)
    return {
        "name": f"{dice.pick(_COMPANIES)} {order}",
        "domain": f"company{order}.example",
        "phone": dice.phone(),
        "website": f"https://company{order}.example",
        "industry": dice.pick(_INDUSTRIES),
        "city": city,
        "country": country,
        "zip": postal,
        "numberofemployees": str(dice.number(2000)),
        "annualrevenue": dice.amount(90_000_000),
        "lifecyclestage": dice.pick(LIFECYCLE_STAGES),
        "hubspot_owner_id": dice.pick(owners) if owners and dice.chance(0.7) else None,
    }


def _deal(world: World, dice: Dice, owners: list[str], order: int, created: int) -> Properties:
    (first, _), (last, _) = dice.person()
    pipeline = world.pipelines["deals"][0 if dice.chance(0.7) else 1]
    amount = dice.amount(12_000)
    return {
        "dealname": f"{dice.pick(_COURSES)} – {first} {last}".replace("_", " "),
        "amount": amount,
        "amount_in_home_currency": amount,
        "dealstage": dice.pick(pipeline["stages"])["id"],
        "pipeline": pipeline["id"],
        "closedate": iso_instant(created + dice.number(90 * DAY_MS)) if dice.chance(0.9) else None,
        "dealtype": "newbusiness" if order % 3 else "existingbusiness",
        "description": dice.pick(_MESSAGES),
        "hs_priority": None if order % 4 else "high",
        "deal_currency_code": "EUR",
        "num_associated_contacts": str(dice.number(3)),
        "hubspot_owner_id": dice.pick(owners) if owners and dice.chance(0.95) else None,
    }


def _ticket(world: World, dice: Dice, owners: list[str], order: int, created: int) -> Properties:
    return {
        "subject": f"Frage {order} {dice.pick(_EMOJI)}",
        "content": dice.pick(_MESSAGES),
        "hs_pipeline": "0",
        "hs_pipeline_stage": str(1 + dice.number(4)),
        "hs_ticket_priority": dice.pick(("LOW", "MEDIUM", "HIGH", None)),
        "hubspot_owner_id": dice.pick(owners) if owners else None,
    }


def _activity(dice: Dice, owners: list[str], created: int, properties: Properties) -> Properties:
    owner = dice.pick(owners) if owners else None
    return {"hs_timestamp": iso_instant(created), "hubspot_owner_id": owner, **properties}


def _call(world: World, dice: Dice, owners: list[str], order: int, created: int) -> Properties:
    dispositions = (
        "9d9162e7-6cf3-4944-bf63-4dff82258764", "f240bbac-87c9-4f6e-bf70-924b57d47db7",
        "73a0d17f-1163-4015-bdd5-ec830791da20", None,
    )  # fmt: skip
    return _activity(dice, owners, created, {
        "hs_call_title": f"Call {order}",
        "hs_call_body": dice.pick(_MESSAGES),
        "hs_call_direction": dice.pick(("INBOUND", "OUTBOUND")),
        "hs_call_disposition": dice.pick(dispositions),
        "hs_call_duration": str(dice.number(3_600_000)),
        "hs_call_status": dice.pick(("COMPLETED", "NO_ANSWER", "BUSY")),
        "hs_call_from_number": dice.phone(),
        "hs_call_to_number": dice.phone(),
    })  # fmt: skip


def _email(world: World, dice: Dice, owners: list[str], order: int, created: int) -> Properties:
    return _activity(dice, owners, created, {
        "hs_email_direction": dice.pick(("EMAIL", "INCOMING_EMAIL", "FORWARDED_EMAIL")),
        "hs_email_status": dice.pick(("SENT", "BOUNCED", "SCHEDULED")),
        "hs_email_subject": f"Re: Kurs {order}",
        "hs_email_text": dice.pick(_MESSAGES),
        "hs_email_from_email": f"from{order}@example.com",
        "hs_email_to_email": f"to{order}@example.org",
    })  # fmt: skip


def _meeting(world: World, dice: Dice, owners: list[str], order: int, created: int) -> Properties:
    return _activity(dice, owners, created, {
        "hs_meeting_title": f"Beratung {order}",
        "hs_meeting_body": dice.pick(_MESSAGES),
        "hs_meeting_start_time": iso_instant(created),
        "hs_meeting_end_time": iso_instant(created + 30 * 60_000),
        "hs_meeting_outcome": dice.pick(("SCHEDULED", "COMPLETED", "NO_SHOW", "CANCELED", None)),
    })  # fmt: skip


def _note(world: World, dice: Dice, owners: list[str], order: int, created: int) -> Properties:
    return _activity(dice, owners, created, {"hs_note_body": dice.pick(_MESSAGES)})


def _task(world: World, dice: Dice, owners: list[str], order: int, created: int) -> Properties:
    return _activity(dice, owners, created, {
        "hs_task_subject": f"Call back {order}",
        "hs_task_body": dice.pick(_MESSAGES),
        "hs_task_status": dice.pick(("NOT_STARTED", "IN_PROGRESS", "COMPLETED")),
        "hs_task_priority": dice.pick(("NONE", "LOW", "HIGH")),
        "hs_task_type": dice.pick(("TODO", "CALL", "EMAIL")),
    })  # fmt: skip
