"""What the account consists of before any record: object types, property definitions, pipelines."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

from clock import iso_instant
from errors import ControlError


@dataclass(frozen=True)
class ObjectType:
    """An object type and the names that differ between types.

    The modified date of contacts is `lastmodifieddate`, of all others `hs_lastmodifieddate`; the creation date
    of activities and custom objects is `hs_createdate`.
    """

    name: str
    type_id: str
    label: str  # as error messages spell it
    scope: str  # read scope with {} for the access, or a whole scope
    defaults: tuple[str, ...] = ()
    created: str = "hs_createdate"
    modified: str = "hs_lastmodifieddate"
    schema_scope: str = ""
    searchable: tuple[str, ...] = ()
    required: tuple[tuple[str, ...], ...] = ()  # on create: one of each group

    @property
    def default_properties(self) -> tuple[str, ...]:
        """Properties delivered when the request names none."""
        return tuple(sorted({*self.defaults, *self.always}))

    @property
    def always(self) -> tuple[str, ...]:
        """Properties delivered with every record; that they are is unverified."""
        return (self.created, self.modified, "hs_object_id")

    def scope_for(self, access: str) -> str:
        """The granular scope for read or write access to records."""
        return self.scope.format(access)

    def schema_scope_for(self, access: str) -> str:
        """The granular scope for property definitions."""
        return (self.schema_scope or self.scope).format(access)


def _standard(name: str, type_id: str, label: str, defaults: str, **more: Any) -> ObjectType:
    more.setdefault("scope", f"crm.objects.{name}.{{}}")
    more.setdefault("schema_scope", f"crm.schemas.{name}.{{}}")
    return ObjectType(name, type_id, label, defaults=tuple(defaults.split()), created="createdate", **more)


def _activity(name: str, type_id: str, label: str) -> ObjectType:
    """Calls, meetings, notes and tasks are gated by the contacts scope; that e-mails are too is assumed."""
    return ObjectType(
        name, type_id, label, "crm.objects.contacts.{}", defaults=("hs_timestamp",), required=(("hs_timestamp",),)
    )


def custom_type(name: str, type_id: str) -> ObjectType:
    """A custom object type, 2-NNN."""
    return ObjectType(name, type_id, type_id, "crm.objects.custom.{}", schema_scope="crm.schemas.custom.{}")


OBJECT_TYPES: tuple[ObjectType, ...] = (
    _standard(
        "contacts", "0-1", "CONTACT", "email firstname lastname",
        modified="lastmodifieddate",
        searchable=("email", "firstname", "lastname", "phone", "company"),
        required=(("email", "firstname", "lastname"),),
    ),
    _standard(
        "companies", "0-2", "COMPANY", "domain name",
        searchable=("name", "domain", "phone"),
        required=(("name", "domain"),),
    ),
    _standard(
        "deals", "0-3", "DEAL", "amount closedate dealname dealstage pipeline",
        searchable=("dealname", "description"),
        required=(("dealname",), ("dealstage",)),
    ),
    _standard(
        "tickets", "0-5", "TICKET", "content hs_pipeline hs_pipeline_stage subject",
        scope="tickets", schema_scope="tickets",
        searchable=("subject", "content"),
        required=(("subject",), ("hs_pipeline_stage",)),
    ),
    _activity("tasks", "0-27", "TASK"),
    _activity("notes", "0-46", "NOTE"),
    _activity("meetings", "0-47", "MEETING"),
    _activity("calls", "0-48", "CALL"),
    _activity("emails", "0-49", "EMAIL"),
)  # fmt: skip

FIELD_TYPES: dict[str, tuple[str, ...]] = {
    "string": ("text", "textarea", "html", "file", "phonenumber", "calculation_equation"),
    "number": ("number", "calculation_equation"),
    "bool": ("booleancheckbox", "calculation_equation"),
    "enumeration": ("select", "radio", "checkbox", "booleancheckbox", "calculation_equation"),
    "date": ("date",),
    "datetime": ("date",),
    "phone_number": ("phonenumber",),
}
_USUAL_FIELD = {kind: names[0] for kind, names in FIELD_TYPES.items()}


@dataclass
class Property:
    """A property definition."""

    name: str
    label: str
    type: str
    field_type: str
    group: str
    options: list[dict[str, Any]] = field(default_factory=list)
    description: str = ""
    unique: bool = False
    read_only: bool = False
    calculated: bool = False
    hubspot_defined: bool = False
    external_options: bool = False
    archived: bool = False
    display_order: int = -1
    created_ms: int = 0
    updated_ms: int = 0

    def to_json(self) -> dict[str, Any]:
        """The definition as the properties API shows it."""
        return {
            "updatedAt": iso_instant(self.updated_ms),
            "createdAt": iso_instant(self.created_ms),
            "name": self.name,
            "label": self.label,
            "type": self.type,
            "fieldType": self.field_type,
            "description": self.description,
            "groupName": self.group,
            "options": self.options,
            "displayOrder": self.display_order,
            "calculated": self.calculated,
            "externalOptions": self.external_options,
            "archived": self.archived,
            "hasUniqueValue": self.unique,
            "hidden": False,
            "hubspotDefined": self.hubspot_defined,
            "modificationMetadata": {
                "archivable": not self.hubspot_defined,
                "readOnlyDefinition": self.hubspot_defined,
                "readOnlyValue": self.read_only,
            },
            "formField": not self.read_only,
            "dataSensitivity": "non_sensitive",
        }


def option_list(values: str) -> list[dict[str, Any]]:
    """Options of an enumeration from `value=Label|value=Label`."""
    pairs = [item.partition("=") for item in values.split("|")]
    return [
        {"label": label or value, "value": value, "displayOrder": order, "hidden": False}
        for order, (value, _, label) in enumerate(pairs)
    ]


LIFECYCLE_STAGES = (
    "subscriber", "lead", "marketingqualifiedlead", "salesqualifiedlead", "opportunity", "customer", "evangelist",
    "other",
)  # fmt: skip

# name:type[:flags] with flags u(nique), r(ead-only), c(alculated), o(ptions kept elsewhere)
_PROPERTIES: dict[str, str] = {
    "contacts": "email:string:u firstname:string lastname:string phone:phone_number mobilephone:phone_number"
    " company:string jobtitle:string website:string address:string city:string state:string zip:string"
    " country:string lifecyclestage:enumeration hs_lead_status:enumeration hs_additional_emails:string"
    " hs_language:enumeration salutation:string date_of_birth:date industry:string numemployees:enumeration"
    " annualrevenue:number hs_email_optout:bool hs_email_domain:string:rc notes_last_contacted:datetime:r"
    " num_notes:number:r num_associated_deals:number:rc hs_analytics_source:enumeration:r message:string"
    " hs_timezone:string hs_whatsapp_phone_number:phone_number",
    "companies": "name:string domain:string phone:phone_number website:string industry:enumeration"
    " city:string country:string zip:string address:string numberofemployees:number annualrevenue:number"
    " lifecyclestage:enumeration description:string",
    "deals": "dealname:string amount:number dealstage:enumeration:o pipeline:enumeration:o closedate:datetime"
    " dealtype:enumeration description:string hs_priority:enumeration deal_currency_code:enumeration"
    " hs_next_step:string closed_lost_reason:string closed_won_reason:string hs_is_closed:bool:rc"
    " hs_is_closed_won:bool:rc hs_deal_stage_probability:number:rc num_associated_contacts:number:rc"
    " amount_in_home_currency:number:rc",
    "tickets": "subject:string content:string hs_pipeline:enumeration:o hs_pipeline_stage:enumeration:o"
    " hs_ticket_priority:enumeration",
    "tasks": "hs_timestamp:datetime hs_task_subject:string hs_task_body:string hs_task_status:enumeration"
    " hs_task_priority:enumeration hs_task_type:enumeration",
    "notes": "hs_timestamp:datetime hs_note_body:string",
    "meetings": "hs_timestamp:datetime hs_meeting_title:string hs_meeting_body:string"
    " hs_internal_meeting_notes:string hs_meeting_start_time:datetime hs_meeting_end_time:datetime"
    " hs_meeting_location:string hs_meeting_outcome:enumeration hs_activity_type:string",
    "calls": "hs_timestamp:datetime hs_call_title:string hs_call_body:string hs_call_direction:enumeration"
    " hs_call_disposition:string hs_call_duration:number hs_call_status:enumeration"
    " hs_call_from_number:string hs_call_to_number:string hs_call_recording_url:string hs_activity_type:string",
    "emails": "hs_timestamp:datetime hs_email_direction:enumeration hs_email_status:enumeration"
    " hs_email_subject:string hs_email_text:string hs_email_html:string hs_email_headers:string"
    " hs_email_from_email:string:r hs_email_to_email:string:r",
}

_OPTIONS: dict[str, str] = {
    "lifecyclestage": "|".join(LIFECYCLE_STAGES),
    "hs_lead_status": "NEW=New|OPEN=Open|IN_PROGRESS=In Progress|OPEN_DEAL=Open Deal|UNQUALIFIED=Unqualified"
    "|ATTEMPTED_TO_CONTACT=Attempted to Contact|CONNECTED=Connected|BAD_TIMING=Bad Timing",
    "hs_language": "en=English|de=German|fr=French|es=Spanish|el=Greek|ru=Russian|ar=Arabic|he=Hebrew"
    "|ja=Japanese|zh-cn=Chinese|ko=Korean|hi=Hindi",
    "numemployees": "1-5|5-25|25-50|50-100|100-500|500-1000|1000+",
    "hs_analytics_source": "ORGANIC_SEARCH|PAID_SEARCH|EMAIL_MARKETING|SOCIAL_MEDIA|REFERRALS|DIRECT_TRAFFIC|OFFLINE",
    "industry": "EDUCATION_MANAGEMENT|E_LEARNING|COMPUTER_SOFTWARE|HOSPITAL_HEALTH_CARE|RETAIL|BANKING",
    "dealtype": "newbusiness=New Business|existingbusiness=Existing Business",
    "hs_priority": "low|medium|high",
    "hs_ticket_priority": "LOW|MEDIUM|HIGH|URGENT",
    "deal_currency_code": "EUR|USD",
    "hs_task_status": "NOT_STARTED|IN_PROGRESS|WAITING|COMPLETED|DEFERRED",
    "hs_task_priority": "NONE|LOW|MEDIUM|HIGH",
    "hs_task_type": "TODO|CALL|EMAIL",
    "hs_meeting_outcome": "SCHEDULED|COMPLETED|RESCHEDULED|NO_SHOW|CANCELED",
    "hs_call_direction": "INBOUND|OUTBOUND",
    "hs_call_status": "BUSY|CALLING_CRM_USER|CANCELED|COMPLETED|CONNECTING|FAILED|IN_PROGRESS|NO_ANSWER|QUEUED|RINGING",
    "hs_email_direction": "EMAIL|INCOMING_EMAIL|FORWARDED_EMAIL",
    "hs_email_status": "BOUNCED|FAILED|SCHEDULED|SENDING|SENT",
}


def property_group(type_name: str) -> str:
    """The group HubSpot's own properties of a type belong to."""
    return {"contacts": "contactinformation", "companies": "companyinformation", "deals": "dealinformation"}.get(
        type_name, f"{type_name}information"
    )


def _built_in(spec: str, group: str) -> Property:
    name, kind, flags = (spec + "::").split(":")[:3]
    return Property(
        name,
        name.removeprefix("hs_").replace("_", " ").title(),
        kind,
        _USUAL_FIELD[kind],
        group,
        options=option_list(_OPTIONS[name]) if kind == "enumeration" and name in _OPTIONS and not flags else [],
        unique="u" in flags,
        read_only="r" in flags,
        calculated="c" in flags,
        hubspot_defined=True,
        external_options="o" in flags,
    )


def built_in_properties(kind: ObjectType) -> dict[str, Property]:
    """Definitions a type has from the start."""
    common = (
        f"hs_object_id:number:r {kind.created}:datetime:r {kind.modified}:datetime:r"
        " hs_merged_object_ids:string:r hubspot_owner_id:enumeration:o"
    )
    specs = (common + " " + _PROPERTIES.get(kind.name, "")).split()
    group = property_group(kind.name)
    return {prop.name: prop for prop in (_built_in(spec, group) for spec in specs)}


def plain_property(name: str, group: str) -> Property:
    """A custom single-line text property."""
    return Property(name, name.replace("_", " ").capitalize(), "string", "text", group)


_DEFINITION_FIELDS = {
    "name": "name", "label": "label", "type": "type", "fieldType": "field_type", "groupName": "group",
    "description": "description", "options": "options", "hasUniqueValue": "unique", "readOnlyValue": "read_only",
    "calculated": "calculated", "hubspotDefined": "hubspot_defined", "externalOptions": "external_options",
    "archived": "archived", "displayOrder": "display_order",
}  # fmt: skip


def described_property(fields: dict[str, Any], known: dict[str, Property], group: str, now_ms: int) -> Property:
    """A definition from the fields of its JSON: a new one is text unless they say more, a known one keeps the rest.

    Names and types are not checked: tests may want some that HubSpot does not have today.
    """
    unknown = set(fields) - set(_DEFINITION_FIELDS)
    name = fields.get("name")
    if unknown or not isinstance(name, str) or not name:
        raise ControlError(f"a definition needs a name and knows only {', '.join(_DEFINITION_FIELDS)}")
    prop = known.get(name) or replace(plain_property(name, group), created_ms=now_ms)
    changes = {_DEFINITION_FIELDS[field_name]: value for field_name, value in fields.items()}
    changes["updated_ms"] = now_ms
    if "type" in fields:
        changes.setdefault("field_type", _USUAL_FIELD.get(fields["type"], "text"))
    return replace(prop, **changes)


def _stage(stage_id: str, label: str, order: int, metadata: dict[str, str]) -> dict[str, Any]:
    return {
        "label": label,
        "displayOrder": order,
        "metadata": metadata,
        "id": stage_id,
        "createdAt": iso_instant(0),
        "updatedAt": iso_instant(0),
        "archived": False,
        "writePermissions": "CRM_PERMISSIONS_ENFORCEMENT",
    }


def deal_stage(stage_id: str, label: str, order: int, probability: str, is_closed: bool) -> dict[str, Any]:
    """A deal stage; won is closed with probability 1.0, lost closed with 0.0."""
    return _stage(stage_id, label, order, {"isClosed": str(is_closed).lower(), "probability": probability})


def _pipeline(pipeline_id: str, label: str, order: int, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """A pipeline; default ones may have a creation date of 0."""
    return {
        "label": label,
        "displayOrder": order,
        "id": pipeline_id,
        "stages": stages,
        "createdAt": iso_instant(0),
        "updatedAt": iso_instant(0),
        "archived": False,
    }


def _deal_stages(*rows: tuple[str, str, str, bool]) -> list[dict[str, Any]]:
    return [deal_stage(name, label, order, chance, closed) for order, (name, label, chance, closed) in enumerate(rows)]


_SALES = _deal_stages(
    ("appointmentscheduled", "Appointment Scheduled", "0.2", False),
    ("qualifiedtobuy", "Qualified To Buy", "0.4", False),
    ("presentationscheduled", "Presentation Scheduled", "0.6", False),
    ("decisionmakerboughtin", "Decision Maker Bought-In", "0.8", False),
    ("contractsent", "Contract Sent", "0.9", False),
    ("closedwon", "Closed Won", "1.0", True),
    ("closedlost", "Closed Lost", "0.0", True),
)
_COURSES = _deal_stages(
    ("1087421101", "Beratung", "0.1", False),
    ("1087421102", "Angebot verschickt", "0.5", False),
    ("1087421103", "Eingeschrieben", "1.0", True),
    ("1087421104", "Abgesagt", "0.0", True),
)
_SUPPORT = [
    _stage("1", "New", 0, {"ticketState": "OPEN"}),
    _stage("2", "Waiting on contact", 1, {"ticketState": "OPEN"}),
    _stage("3", "Waiting on us", 2, {"ticketState": "OPEN"}),
    _stage("4", "Closed", 3, {"ticketState": "CLOSED"}),
]


def default_pipelines() -> dict[str, list[dict[str, Any]]]:
    """A fresh copy of the pipelines by object type."""
    return copy.deepcopy(
        {
            "deals": [
                _pipeline("default", "Sales Pipeline", 0, _SALES),
                _pipeline("74120953", "Kurse & Schüler", 1, _COURSES),
            ],
            "tickets": [_pipeline("0", "Support Pipeline", 0, _SUPPORT)],
        }
    )
