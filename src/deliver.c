/*-------------------------------------------------------------------------
 *
 * deliver.c
 *	  Sending students' values to HubSpot.
 *
 *	  outbox -> contact known?	from an earlier push, or by e-mail from the
 *								synchronised contacts
 *		no  -> look-up			batch read by e-mail, what is ambiguous alone
 *		yes -> update			batch update by id, several on the wire
 *
 * Look-ups and updates are filled across slices, so that only the last of a
 * run is short.  Only what stands in an answer's results was accepted (facts
 * section 5).  An input that is named in an error has failed; one that is not
 * mentioned at all may belong to a contact that was merged away, and is looked
 * up again, then sent alone, once each.  A batch that is refused as a whole is
 * sent again without the culprit, if one is named, else in halves.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "miscadmin.h"
#include "utils/memutils.h"

#include "compat.h"
#include "deliver.h"

#define OBJECT_TYPE "contacts"
#define EMAIL_PROPERTY "email"
#define OTHER_EMAILS_PROPERTY "hs_additional_emails"

/* Requests on the wire. */
#define MAX_IN_FLIGHT 4

/* Updates refused one after the other before it cannot be the students. */
#define MAX_REFUSALS 250

typedef enum Kind
{
	FIND,						/* contacts by e-mail */
	FIND_ONE,
	UPDATE
} Kind;

typedef struct Batch
{
	Kind		kind;
	int			number;
	int			n;
	HsParcel   *parcels[HS_API_BATCH_LIMIT];
	HsApiCall  *call;			/* NULL: not sent yet */
} Batch;

typedef struct Courier
{
	HsDelivery *delivery;
	HsRun	   *run;
	MemoryContext context;		/* of parcels and batches */
	MemoryContext answer_context;
	bool		outbox_empty;
	HsParcels	unknown;		/* whose contact is not known */
	HsParcels	ready;
	List	   *again;			/* of Batch *: to be sent as they are */
	List	   *flight;			/* of Batch *, the oldest first */
	bool		has_errors;		/* there are errors to close */
	bool		undefined;		/* HubSpot does not know a property */
	int			nbatches;
	int			refusals;		/* updates refused since one was accepted */
} Courier;

/* Why a student was not accepted. */
typedef struct Failure
{
	HsParcel   *parcel;
	const char *category;
	const char *property;		/* NULL: not known */
	const char *message;
} Failure;

/* What came of an answer, to be written down. */
typedef struct Outcome
{
	HsParcel   *accepted[HS_API_BATCH_LIMIT];
	int			naccepted;
	List	   *failures;		/* of Failure * */
} Outcome;

/* ------------------------------------------------------------------------
 * Writing down
 * ------------------------------------------------------------------------
 */

static void
add_failure(Outcome *outcome, HsParcel *parcel, const char *category,
			const char *property, const char *message)
{
	Failure    *failure = palloc(sizeof(Failure));

	failure->parcel = parcel;
	failure->category = category;
	failure->property = property;
	failure->message = message;
	outcome->failures = lappend(outcome->failures, failure);
}

/* Writes a failure to sync_errors. */
static void
save_failure(const Courier *courier, const Failure *failure)
{
	const HsRunRequest *request = &courier->run->request;
	HsDeadLetter letter = {
		.record_id = failure->parcel->id,
		.email = failure->parcel->email,
		.property = failure->property,
		.category = failure->category,
		.message = failure->message,
		.payload = failure->parcel->properties
	};

	hs_catalog_dead_letter(&courier->run->id, &request->connection_id,
						   request->sync_type, &letter);
}

/* Notes what was accepted, and closes these students' errors. */
static void
save_accepted(const Courier *courier, const Outcome *outcome)
{
	const HsRunRequest *request = &courier->run->request;
	int			n = outcome->naccepted;
	HsAcceptances accepted;

	hs_acceptances_init(&accepted, n);
	accepted.n = n;
	for (int i = 0; i < n; i++)
	{
		const HsParcel *parcel = outcome->accepted[i];

		accepted.users[i] = parcel->id;
		accepted.emails[i] = parcel->address;
		accepted.contacts[i] = parcel->contact_id;
		accepted.properties[i] = parcel->accepted;
		accepted.fingerprints[i] = psprintf(INT64_FORMAT, parcel->fingerprint);
	}
	hs_catalog_save_progress(&request->connection_id, &accepted);
	if (courier->has_errors && n > 0)
		hs_catalog_resolve_errors(&request->connection_id, request->sync_type,
								  accepted.users, n);
}

/* Writes an outcome down and lets go of the students it is about. */
static void
settle(Courier *courier, const Outcome *outcome)
{
	HsRun	   *run = courier->run;
	HsRunCounters next = run->counters;
	ListCell   *lc;

	if (outcome->naccepted == 0 && outcome->failures == NIL)
		return;
	next.processed += outcome->naccepted + list_length(outcome->failures);
	next.changed += outcome->naccepted;
	next.failed += list_length(outcome->failures);
	hs_run_begin(run);
	save_accepted(courier, outcome);
	foreach(lc, outcome->failures)
		save_failure(courier, lfirst(lc));
	hs_run_save(run, &next, NULL);
	hs_run_commit(run);
	hs_run_count(run, &next);
	if (outcome->naccepted > 0)
		courier->refusals = 0;
	for (int i = 0; i < outcome->naccepted; i++)
		hs_parcel_free(outcome->accepted[i]);
	foreach(lc, outcome->failures)
		hs_parcel_free(((Failure *) lfirst(lc))->parcel);
}

/* ------------------------------------------------------------------------
 * Contacts
 * ------------------------------------------------------------------------
 */

/* The students who are on their way to a contact, other than one. */
static const HsParcel *
other_sender(const Courier *courier, const HsParcel *parcel)
{
	ListCell   *lc;

	for (const HsParcel *p = courier->ready.first; p != NULL; p = p->next)
	{
		if (p != parcel && strcmp(p->contact_id, parcel->contact_id) == 0)
			return p;
	}
	foreach(lc, list_concat_copy(courier->flight, courier->again))
	{
		const Batch *batch = lfirst(lc);

		for (int i = 0; batch->kind == UPDATE && i < batch->n; i++)
		{
			if (batch->parcels[i] != parcel &&
				strcmp(batch->parcels[i]->contact_id, parcel->contact_id) == 0)
				return batch->parcels[i];
		}
	}
	return NULL;
}

/* The student, other than this one, whose values a contact has. */
static const char *
other_holder(List *holders, const HsParcel *parcel)
{
	ListCell   *lc;

	foreach(lc, holders)
	{
		const HsProgressState *state = lfirst(lc);

		if (strcmp(state->contact_id, parcel->contact_id) == 0 &&
			strcmp(state->user_id, parcel->id) != 0)
			return state->user_id;
	}
	return NULL;
}

/* Whether a list of texts has one. */
static bool
has_text(List *texts, const char *text)
{
	ListCell   *lc;

	foreach(lc, texts)
	{
		if (strcmp(lfirst(lc), text) == 0)
			return true;
	}
	return false;
}

/*
 * Has a parcel clear what its contact has of the student before.
 */
static void
clear_others(Courier *courier, HsParcel **parcels, int n,
			 const HsProgressState *state)
{
	const HsJson *before = hs_json_parse(state->properties,
										 strlen(state->properties))
							   .root;
	const char **names;
	int			nnames = hs_json_names(before, &names);

	for (int i = 0; i < n; i++)
	{
		if (strcmp(parcels[i]->contact_id, state->contact_id) == 0)
			hs_parcel_clear(parcels[i], courier->context, names, nnames);
	}
}

/*
 * Who has the values of contacts that were just found, as HsProgressState *.
 * What was noted of students who are no more, or have another address now, is
 * forgotten: somebody else may have that contact, and clears what is not his.
 * Needs a transaction.
 */
static List *
find_holders(Courier *courier, HsParcel **parcels, int n)
{
	const pg_uuid_t *connection = &courier->run->request.connection_id;
	const char **contacts = palloc(sizeof(char *) * Max(n, 1));
	List	   *holders;
	List	   *others = NIL;
	const char **ids;
	const char **addresses;
	int			nids = 0;
	List	   *present;
	ListCell   *lc;

	for (int i = 0; i < n; i++)
		contacts[i] = parcels[i]->contact_id;
	foreach(lc, hs_catalog_leftovers(connection, contacts, n))
		clear_others(courier, parcels, n, lfirst(lc));
	holders = hs_catalog_contact_holders(connection, contacts, n);
	if (holders == NIL)
		return NIL;
	ids = palloc(sizeof(char *) * list_length(holders));
	addresses = palloc(sizeof(char *) * list_length(holders));
	foreach(lc, holders)
	{
		ids[nids] = ((HsProgressState *) lfirst(lc))->user_id;
		addresses[nids++] = ((HsProgressState *) lfirst(lc))->email;
	}
	present = hs_progress_find_users(courier->delivery->progress, ids,
									 addresses, nids);
	nids = 0;
	foreach(lc, holders)
	{
		HsProgressState *state = lfirst(lc);

		if (has_text(present, state->user_id))
		{
			others = lappend(others, state);
			continue;
		}
		clear_others(courier, parcels, n, state);
		ids[nids++] = state->user_id;
	}
	if (nids > 0)
		hs_catalog_drop_progress(connection, ids, nids);
	return others;
}

/*
 * Notes what is about to be sent to contacts.  If the answer gets lost, or the
 * process, the next run knows what they may have.  Needs a transaction.
 */
static void
announce(const Courier *courier, HsParcel *const *parcels, int n)
{
	const char *kept[HS_API_BATCH_LIMIT];
	HsAcceptances sent;

	hs_acceptances_init(&sent, n);
	for (int i = 0; i < n; i++)
	{
		const HsParcel *parcel = parcels[i];

		sent.users[i] = parcel->id;
		sent.emails[i] = parcel->address;
		sent.contacts[i] = parcel->contact_id;
		sent.properties[i] = parcel->properties;
		kept[i] = parcel->accepted == parcel->properties ? NULL
			: parcel->accepted;
	}
	sent.n = n;
	hs_catalog_announce_progress(&courier->run->request.connection_id, &sent,
								 kept);
}

/* Notes what heirs are about to clear. */
static void
inherit(const Courier *courier, HsParcel *const *heirs, int n)
{
	const char **contacts = palloc(sizeof(char *) * n);

	for (int i = 0; i < n; i++)
		contacts[i] = heirs[i]->contact_id;
	announce(courier, heirs, n);
	hs_catalog_drop_leftovers(&courier->run->request.connection_id, contacts,
							  n);
}

/*
 * Puts students whose contact was just found among those that are ready,
 * unless the contact is somebody else's.  Needs a transaction.
 */
static void
admit(Courier *courier, HsParcel **parcels, int n, Outcome *outcome)
{
	List	   *holders = find_holders(courier, parcels, n);
	HsParcel   *heirs[HS_API_BATCH_LIMIT];
	int			nheirs = 0;

	for (int i = 0; i < n; i++)
	{
		HsParcel   *parcel = parcels[i];
		const char *holder = other_holder(holders, parcel);
		const HsParcel *sender = other_sender(courier, parcel);

		if (holder == NULL && sender != NULL)
			holder = sender->id;
		if (holder == NULL)
		{
			hs_parcels_add(&courier->ready, parcel);
			if (parcel->extended != NULL)
				heirs[nheirs++] = parcel;
		}
		else
			add_failure(outcome, parcel, "duplicate_contact", NULL,
						psprintf("contact %s is that of student \"%s\", too",
								 parcel->contact_id, holder));
	}
	/* From now on what they inherit is noted as theirs. */
	if (nheirs > 0)
		inherit(courier, heirs, nheirs);
}

/* Sets the contacts of students that the synchronised contacts know. */
static int
look_up_here(Courier *courier, HsParcel **parcels, int n, HsParcel **found)
{
	const char **emails = palloc(sizeof(char *) * Max(n, 1));
	const char **contacts = palloc(sizeof(char *) * Max(n, 1));
	int			nfound = 0;

	for (int i = 0; i < n; i++)
		emails[i] = parcels[i]->address;
	hs_catalog_contacts_by_email(&courier->run->request.connection_id, emails,
								 n, contacts);
	for (int i = 0; i < n; i++)
	{
		hs_parcel_set_contact(parcels[i], courier->context, contacts[i]);
		if (contacts[i] != NULL)
			found[nfound++] = parcels[i];
		else
			hs_parcels_add(&courier->unknown, parcels[i]);
	}
	return nfound;
}

/*
 * Takes up to a batch of students out of the outbox and finds out, as far as
 * this database knows, which contacts they are.
 */
static void
load(Courier *courier)
{
	MemoryContext old = MemoryContextSwitchTo(courier->answer_context);
	HsParcel   *parcels[HS_API_BATCH_LIMIT];
	HsParcel   *found[HS_API_BATCH_LIMIT];
	Outcome		outcome = {.naccepted = 0};
	int			n = 0;
	HsParcel   *parcel;

	for (int i = 0; i < HS_API_BATCH_LIMIT; i++)
	{
		parcel = hs_outbox_take(courier->delivery->outbox, courier->context);
		if (parcel == NULL)
		{
			courier->outbox_empty = true;
			break;
		}
		if (parcel->contact_id != NULL)
			hs_parcels_add(&courier->ready, parcel);
		else
			parcels[n++] = parcel;
	}
	if (n > 0)
	{
		hs_run_begin(courier->run);
		n = look_up_here(courier, parcels, n, found);
		admit(courier, found, n, &outcome);
		hs_run_commit(courier->run);
		settle(courier, &outcome);
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(courier->answer_context);
}

/* ------------------------------------------------------------------------
 * Sending
 * ------------------------------------------------------------------------
 */

static Batch *
new_batch(Courier *courier, Kind kind)
{
	Batch	   *batch = MemoryContextAllocZero(courier->context, sizeof(Batch));

	batch->kind = kind;
	batch->number = ++courier->nbatches;
	return batch;
}

/* The mark by which an input is known in the answer. */
static char *
trace_id(const Batch *batch, int i)
{
	return psprintf("%d.%d", batch->number, i);
}

/* The body of an update. */
static char *
update_body(const Batch *batch)
{
	StringInfoData body;

	initStringInfo(&body);
	appendStringInfoString(&body, "{\"inputs\":[");
	for (int i = 0; i < batch->n; i++)
	{
		const HsParcel *parcel = batch->parcels[i];

		appendStringInfoString(&body, i > 0 ? ",{\"id\":" : "{\"id\":");
		hs_json_append_string(&body, parcel->contact_id);
		appendStringInfo(&body, ",\"objectWriteTraceId\":\"%s\",\"properties\":",
						 trace_id(batch, i));
		appendStringInfoString(&body, parcel->properties);
		appendStringInfoChar(&body, '}');
	}
	appendStringInfoString(&body, "]}");
	return body.data;
}

/* The properties by which a contact is known. */
static List *
email_properties(void)
{
	return list_make2(EMAIL_PROPERTY, OTHER_EMAILS_PROPERTY);
}

/* Puts a batch on the wire. */
static void
send_batch(Courier *courier, Batch *batch)
{
	MemoryContext old = MemoryContextSwitchTo(courier->answer_context);
	HsApi	   *api = courier->run->api;
	const char *emails[HS_API_BATCH_LIMIT];

	if (batch->kind == UPDATE)
	{
		hs_run_begin(courier->run);
		announce(courier, batch->parcels, batch->n);
		hs_run_commit(courier->run);
	}
	for (int i = 0; i < batch->n; i++)
		emails[i] = batch->parcels[i]->address;
	if (batch->kind == UPDATE)
		batch->call = hs_api_batch_update(api, OBJECT_TYPE, update_body(batch));
	else if (batch->kind == FIND)
		batch->call = hs_api_find_by_email(api, OBJECT_TYPE, email_properties(),
										   emails, batch->n);
	else
		batch->call = hs_api_read_by_email(api, OBJECT_TYPE, email_properties(),
										   emails[0]);
	MemoryContextSwitchTo(courier->context);
	courier->flight = lappend(courier->flight, batch);
	MemoryContextSwitchTo(old);
	MemoryContextReset(courier->answer_context);
}

/* Fills a batch from a queue. */
static Batch *
fill_batch(Courier *courier, Kind kind, HsParcels *queue)
{
	Batch	   *batch = new_batch(courier, kind);

	while (batch->n < HS_API_BATCH_LIMIT && queue->first != NULL)
		batch->parcels[batch->n++] = hs_parcels_take(queue);
	return batch;
}

/* Whether a look-up is on the wire, whose answer brings more to send. */
static bool
is_looking_up(const Courier *courier)
{
	ListCell   *lc;

	foreach(lc, courier->flight)
	{
		if (((Batch *) lfirst(lc))->kind != UPDATE)
			return true;
	}
	return false;
}

/*
 * The next batch to send, NULL if none is full and more may come to fill one.
 */
static Batch *
next_batch(Courier *courier)
{
	bool		last = courier->outbox_empty;

	if (courier->undefined)
		return NULL;
	if (courier->again != NIL)
	{
		Batch	   *batch = linitial(courier->again);

		courier->again = list_delete_first(courier->again);
		return batch;
	}
	if (courier->unknown.n >= HS_API_BATCH_LIMIT ||
		(last && courier->unknown.n > 0 && !is_looking_up(courier)))
		return fill_batch(courier, FIND, &courier->unknown);
	if (courier->ready.n >= HS_API_BATCH_LIMIT ||
		(last && courier->ready.n > 0 && courier->unknown.n == 0 &&
		 !is_looking_up(courier)))
		return fill_batch(courier, UPDATE, &courier->ready);
	return NULL;
}

/* Sends what there is to send, as far as the wire has room. */
static void
send_batches(Courier *courier)
{
	while (list_length(courier->flight) < MAX_IN_FLIGHT)
	{
		Batch	   *batch = next_batch(courier);

		if (batch != NULL)
			send_batch(courier, batch);
		else if (!courier->outbox_empty && !courier->undefined)
			load(courier);
		else
			break;
	}
}

/* ------------------------------------------------------------------------
 * Answers to look-ups
 * ------------------------------------------------------------------------
 */

/* Whether an address stands in a list separated by semicolons. */
static bool
is_listed(const char *list, const char *address)
{
	size_t		length = strlen(address);

	while (list != NULL && *list != '\0')
	{
		const char *end = strchrnul(list, ';');

		while (*list == ' ')
			list++;
		if ((size_t) (end - list) == length &&
			pg_strncasecmp(list, address, length) == 0)
			return true;
		list = *end == ';' ? end + 1 : end;
	}
	return false;
}

/* Whether a contact has an address; *primary: as its first one. */
static bool
has_address(const HsJson *contact, const char *address, bool *primary)
{
	const HsJson *properties = hs_json_member(contact, "properties");
	const char *first = hs_json_text(hs_json_member(properties, EMAIL_PROPERTY));
	const char *others = hs_json_text(hs_json_member(properties,
													 OTHER_EMAILS_PROPERTY));

	*primary = first != NULL && is_listed(first, address);
	return *primary || is_listed(others, address);
}

/* The id of a contact, NULL if it is none. */
static const char *
contact_id(const HsJson *contact)
{
	const char *id = hs_json_text(hs_json_member(contact, "id"));

	if (id == NULL || id[0] == '\0' || strlen(id) > 20 ||
		strspn(id, "0123456789") != strlen(id))
		return NULL;
	return id;
}

/*
 * The id of the one contact among results that has an address, NULL if there
 * is none; *several if there is more than one.
 */
static const char *
match_address(const HsJson *results, const char *address, bool *several)
{
	const char *found = NULL;
	int			nprimary = 0;
	int			n = 0;

	for (int i = 0; i < hs_json_length(results); i++)
	{
		const HsJson *contact = hs_json_element(results, i);
		const char *id = contact_id(contact);
		bool		primary;

		if (id == NULL || !has_address(contact, address, &primary))
			continue;
		n++;
		nprimary += primary;
		if (primary || found == NULL)
			found = id;
	}
	*several = n > 1 && nprimary != 1;
	return found;
}

/* Whether an answer says that there is no record of this name. */
static bool
is_named_missing(const HsJson *root, const char *name)
{
	const HsJson *errors = hs_json_member(root, "errors");

	for (int i = 0; i < hs_json_length(errors); i++)
	{
		const HsJson *ids = hs_json_path(hs_json_element(errors, i), "context",
										 "ids");

		for (int j = 0; j < hs_json_length(ids); j++)
		{
			const char *id = hs_json_text(hs_json_element(ids, j));

			if (id != NULL && pg_strcasecmp(id, name) == 0)
				return true;
		}
	}
	return false;
}

/* Has a student looked up in a request of its own. */
static void
find_alone(Courier *courier, HsParcel *parcel)
{
	MemoryContext old = MemoryContextSwitchTo(courier->context);
	Batch	   *batch = new_batch(courier, FIND_ONE);

	batch->parcels[batch->n++] = parcel;
	courier->again = lappend(courier->again, batch);
	MemoryContextSwitchTo(old);
}

static void
not_found(Outcome *outcome, HsParcel *parcel)
{
	add_failure(outcome, parcel, "contact_not_found", NULL,
				psprintf("no contact in HubSpot has the e-mail address %s",
						 parcel->address));
}

/* Takes over whom a batch of look-ups has found. */
static void
take_found(Courier *courier, Batch *batch, const HsJson *root)
{
	const HsJson *results = hs_json_member(root, "results");
	HsParcel   *found[HS_API_BATCH_LIMIT];
	Outcome		outcome = {.naccepted = 0};
	int			n = 0;

	for (int i = 0; i < batch->n; i++)
	{
		HsParcel   *parcel = batch->parcels[i];
		bool		several;
		const char *id = match_address(results, parcel->address, &several);

		parcel->looked_up = true;
		if (id != NULL && !several)
		{
			hs_parcel_set_contact(parcel, courier->context, id);
			found[n++] = parcel;
		}
		else if (id == NULL && is_named_missing(root, parcel->address))
			not_found(&outcome, parcel);
		else
			find_alone(courier, parcel);
	}
	hs_run_begin(courier->run);
	admit(courier, found, n, &outcome);
	hs_run_commit(courier->run);
	settle(courier, &outcome);
}

/* Takes over the answer to a look-up of one student; NULL: refused. */
static void
take_found_one(Courier *courier, Batch *batch, const HsJson *root)
{
	HsParcel   *parcel = batch->parcels[0];
	const char *id = contact_id(root);
	Outcome		outcome = {.naccepted = 0};

	parcel->looked_up = true;
	if (id != NULL)
	{
		hs_parcel_set_contact(parcel, courier->context, id);
		hs_run_begin(courier->run);
		admit(courier, &parcel, 1, &outcome);
		hs_run_commit(courier->run);
	}
	else if (root == NULL && courier->run->api->refusal_status != 404)
		add_failure(&outcome, parcel, "invalid_email", EMAIL_PROPERTY,
					hs_api_refusal_text(courier->run->api));
	else
		not_found(&outcome, parcel);
	settle(courier, &outcome);
}

/* ------------------------------------------------------------------------
 * Answers to updates
 * ------------------------------------------------------------------------
 */

/* What became of each input of an update. */
typedef struct Fate
{
	bool		accepted;
	const HsJson *error;		/* NULL: none names it */
} Fate;

/* The input that a trace id is of, -1 if it is none of this batch. */
static int
traced_input(const Batch *batch, const char *trace)
{
	char	   *end;
	long		number;
	long		i;

	if (trace == NULL || !isdigit((unsigned char) trace[0]))
		return -1;
	errno = 0;
	number = strtol(trace, &end, 10);
	if (*end != '.' || !isdigit((unsigned char) end[1]))
		return -1;
	i = strtol(end + 1, &end, 10);
	if (errno != 0 || *end != '\0' || number != batch->number || i < 0 ||
		i >= batch->n)
		return -1;
	return (int) i;
}

/* The input that goes to a contact, -1 if there is none. */
static int
input_of_contact(const Batch *batch, const char *id)
{
	for (int i = 0; id != NULL && i < batch->n; i++)
	{
		if (strcmp(batch->parcels[i]->contact_id, id) == 0)
			return i;
	}
	return -1;
}

/*
 * Marks the inputs that are among the results.  A contact may have got
 * another id (facts section 7), which is the one to remember.
 */
static void
mark_results(const Courier *courier, Batch *batch, const HsJson *root,
			 Fate *fates)
{
	const HsJson *results = hs_json_member(root, "results");

	for (int i = 0; i < hs_json_length(results); i++)
	{
		const HsJson *result = hs_json_element(results, i);
		const char *id = contact_id(result);
		int			input = traced_input(batch, hs_json_text(hs_json_member(result,
																			"objectWriteTraceId")));

		if (input < 0)
			input = input_of_contact(batch, id);
		if (input < 0)
			continue;
		fates[input].accepted = true;
		if (id != NULL)
			hs_parcel_set_contact(batch->parcels[input], courier->context, id);
	}
}

/* Marks the inputs that a list in an error's context names. */
static int
mark_named(const Batch *batch, const HsJson *error, const char *list,
		   bool traces, Fate *fates, bool *names_one)
{
	const HsJson *names = hs_json_path(error, "context", list);
	int			marked = 0;

	for (int i = 0; i < hs_json_length(names); i++)
	{
		const char *name = hs_json_text(hs_json_element(names, i));
		int			input = traces ? traced_input(batch, name)
			: input_of_contact(batch, name);

		if (input < 0)
			continue;
		*names_one = true;
		if (fates[input].accepted || fates[input].error != NULL)
			continue;
		fates[input].error = error;
		marked++;
	}
	return marked;
}

/*
 * Marks the inputs that errors name.  Returns how many; *nameless is an error
 * that names none.
 */
static int
mark_errors(const Batch *batch, const HsJson *root, Fate *fates,
			const HsJson **nameless)
{
	const HsJson *errors = hs_json_member(root, "errors");
	int			marked = 0;

	for (int i = 0; i < hs_json_length(errors); i++)
	{
		const HsJson *error = hs_json_element(errors, i);
		bool		names_one = false;

		marked += mark_named(batch, error, "objectWriteTraceId", true, fates,
							 &names_one);
		marked += mark_named(batch, error, "ids", false, fates, &names_one);
		if (!names_one)
			*nameless = error;
	}
	return marked;
}

/* The code of an error, its own or that of the first one inside. */
static const char *
error_code(const HsJson *error)
{
	const char *code = hs_json_text(hs_json_member(error, "code"));

	if (code == NULL)
		code = hs_json_text(hs_json_member(hs_json_element(hs_json_member(error, "errors"),
														   0),
										   "code"));
	return code ? code : "";
}

/* The first property that an error is about, NULL if it names none. */
static const char *
error_property(const HsJson *error)
{
	const HsJson *inner = hs_json_element(hs_json_member(error, "errors"), 0);
	const HsJson *names = hs_json_path(error, "context", "propertyName");

	if (hs_json_length(names) == 0)
		names = hs_json_path(inner, "context", "propertyName");
	return hs_json_text(hs_json_element(names, 0));
}

/*
 * Whether an error is about a property that HubSpot does not have.  The text
 * of a message repeats the code where an answer has no other place for it
 * (facts section 5).
 */
static bool
is_undefined(const Courier *courier, const HsJson *error)
{
	const char *message = hs_json_text(hs_json_member(error, "message"));

	if (courier->delivery->insists)
		return false;
	if (strcmp(error_code(error), "PROPERTY_DOESNT_EXIST") == 0)
		return true;
	return message != NULL && strstr(message, "\"PROPERTY_DOESNT_EXIST\"") != NULL;
}

static bool
is_not_found(const HsJson *error)
{
	const char *category = hs_json_text(hs_json_member(error, "category"));

	return category != NULL && strcmp(category, "OBJECT_NOT_FOUND") == 0;
}

/* Fails a student for what HubSpot says. */
static void
fail_student(Courier *courier, Outcome *outcome, HsParcel *parcel,
			 const HsJson *error)
{
	const HsApi *api = courier->run->api;
	const char *property = error_property(error);
	const char *message = hs_json_text(hs_json_member(error, "message"));
	const char *code = error_code(error);

	if (message == NULL)
		message = code[0] != '\0' ? code : "HubSpot refuses the values";
	courier->delivery->doubtful = true;
	code = hs_api_safe_text(api, code);
	message = hs_api_safe_text(api, message);
	if (code[0] != '\0' && strstr(message, code) == NULL)
		message = psprintf("%s (%s)", message, code);
	add_failure(outcome, parcel, "refused",
				property ? hs_api_safe_text(api, property) : NULL, message);
}

/* Has a student's contact looked up by HubSpot. */
static void
look_up_again(Courier *courier, HsParcel *parcel)
{
	hs_parcel_set_contact(parcel, courier->context, NULL);
	hs_parcels_add(&courier->unknown, parcel);
}

/* Has students sent in a batch as they are. */
static void
send_again(Courier *courier, HsParcel **parcels, int n)
{
	MemoryContext old = MemoryContextSwitchTo(courier->context);
	Batch	   *batch = new_batch(courier, UPDATE);

	memcpy(batch->parcels, parcels, sizeof(HsParcel *) * n);
	batch->n = n;
	if (n == 1)
		parcels[0]->alone = true;
	courier->again = lappend(courier->again, batch);
	MemoryContextSwitchTo(old);
}

/* Decides about a student whom an error names. */
static void
judge_error(Courier *courier, Outcome *outcome, HsParcel *parcel,
			const HsJson *error)
{
	if (is_undefined(courier, error))
	{
		courier->undefined = true;
		hs_parcel_free(parcel); /* the next round computes it anew */
	}
	else if (!is_not_found(error))
		fail_student(courier, outcome, parcel, error);
	else if (!parcel->looked_up)
		look_up_again(courier, parcel);
	else
		not_found(outcome, parcel);
}

/*
 * Decides about students of whom an answer says nothing.  If it has an error
 * that names nobody, it is about some of them.
 */
static void
judge_silence(Courier *courier, Outcome *outcome, HsParcel **parcels, int n,
			  const HsJson *nameless)
{
	if (n > 1 && nameless != NULL)
	{
		send_again(courier, parcels, n / 2);
		send_again(courier, parcels + n / 2, n - n / 2);
		return;
	}
	for (int i = 0; i < n; i++)
	{
		HsParcel   *parcel = parcels[i];

		if (nameless != NULL)
			judge_error(courier, outcome, parcel, nameless);
		else if (!parcel->looked_up)
			look_up_again(courier, parcel);
		else if (!parcel->alone)
			send_again(courier, &parcel, 1);
		else
			add_failure(outcome, parcel, "not_confirmed", NULL,
						psprintf("HubSpot's answer says nothing about contact %s",
								 parcel->contact_id));
	}
}

/* Takes over the answer to an update. */
static void
take_updated(Courier *courier, Batch *batch, const HsJson *root)
{
	Fate		fates[HS_API_BATCH_LIMIT] = {0};
	HsParcel   *silent[HS_API_BATCH_LIMIT];
	const HsJson *nameless = NULL;
	Outcome		outcome = {.naccepted = 0};
	int			n = 0;

	mark_results(courier, batch, root, fates);
	(void) mark_errors(batch, root, fates, &nameless);
	for (int i = 0; i < batch->n; i++)
	{
		HsParcel   *parcel = batch->parcels[i];

		if (fates[i].accepted)
			outcome.accepted[outcome.naccepted++] = parcel;
		else if (fates[i].error != NULL)
			judge_error(courier, &outcome, parcel, fates[i].error);
		else
			silent[n++] = parcel;
	}
	judge_silence(courier, &outcome, silent, n, nameless);
	settle(courier, &outcome);
}

/* Throws: it is not the students. */
pg_noreturn static void
give_up(Courier *courier)
{
	courier->run->reason = "refused";
	ereport(ERROR,
			(errcode(ERRCODE_FDW_ERROR),
			 errmsg("HubSpot has refused %d updates in a row: %s", MAX_REFUSALS,
					hs_api_refusal_text(courier->run->api)),
			 errhint("The next run tries again.")));
}

/*
 * Takes over that an update was refused as a whole: nothing was written.  If
 * some inputs are named, the others are sent again; if not, halves are.
 */
static void
take_refused(Courier *courier, Batch *batch)
{
	const HsJson *root = courier->run->api->refusal;
	Fate		fates[HS_API_BATCH_LIMIT] = {0};
	HsParcel   *rest[HS_API_BATCH_LIMIT];
	const HsJson *nameless = NULL;
	bool		ignored;
	Outcome		outcome = {.naccepted = 0};
	int			named = mark_errors(batch, root, fates, &nameless) +
		mark_named(batch, root, "objectWriteTraceId", true, fates, &ignored) +
		mark_named(batch, root, "ids", false, fates, &ignored);
	int			n = 0;

	if (++courier->refusals > MAX_REFUSALS)
		give_up(courier);
	if (is_undefined(courier, root))
		courier->undefined = true;
	for (int i = 0; i < batch->n; i++)
	{
		if (courier->undefined)
			hs_parcel_free(batch->parcels[i]);
		else if (fates[i].error != NULL && named < batch->n)
			judge_error(courier, &outcome, batch->parcels[i], fates[i].error);
		else
			rest[n++] = batch->parcels[i];
	}
	if (n == 1 && named != 0 && named < batch->n)
		send_again(courier, rest, 1);
	else if (n == 1)
		judge_error(courier, &outcome, rest[0], root);
	else if (n > 0 && named != 0 && named < batch->n)
		send_again(courier, rest, n);
	else if (n > 0)
	{
		send_again(courier, rest, n / 2);
		send_again(courier, rest + n / 2, n - n / 2);
	}
	settle(courier, &outcome);
}

/* ------------------------------------------------------------------------
 * The loop
 * ------------------------------------------------------------------------
 */

/* A look-up that was refused as a whole: each is looked up alone. */
static void
split_look_up(Courier *courier, Batch *batch)
{
	for (int i = 0; i < batch->n; i++)
		find_alone(courier, batch->parcels[i]);
}

/* Waits for the oldest request on the wire and takes its answer over. */
static void
receive(Courier *courier)
{
	MemoryContext old = MemoryContextSwitchTo(courier->answer_context);
	Batch	   *batch = linitial(courier->flight);
	HsApi	   *api = courier->run->api;
	const HsJson *root;

	courier->flight = list_delete_first(courier->flight);
	api->tolerates = HS_TOLERATE_REFUSAL;
	root = hs_api_finish(api, batch->call);
	if (batch->kind == FIND_ONE)
		take_found_one(courier, batch, root);
	else if (batch->kind == FIND && root == NULL)
		split_look_up(courier, batch);
	else if (batch->kind == FIND)
		take_found(courier, batch, root);
	else if (root == NULL)
		take_refused(courier, batch);
	else
		take_updated(courier, batch, root);
	pfree(batch);
	MemoryContextSwitchTo(old);
	MemoryContextReset(courier->answer_context);
}

/* Whether there are errors that an accepted student may close. */
static bool
has_errors(Courier *courier)
{
	const HsRunRequest *request = &courier->run->request;
	bool		result;

	hs_run_begin(courier->run);
	result = hs_catalog_has_open_errors(&request->connection_id,
										request->sync_type);
	hs_run_commit(courier->run);
	return result;
}

/*
 * Sends everybody in the outbox.  Throws what stops a run; who was accepted
 * before is noted.  HS_UNKNOWN_PROPERTY is returned, with whatever was on the
 * wire settled, as soon as HubSpot turns out not to know a property.
 */
HsDeliveryEnd
hs_deliver(HsDelivery *delivery)
{
	Courier		courier = {
		.delivery = delivery,
		.run = delivery->run,
		.context = AllocSetContextCreate(delivery->context,
										 "hubspot_sync parcels",
										 ALLOCSET_DEFAULT_SIZES)
	};

	courier.answer_context = AllocSetContextCreate(delivery->context,
												   "hubspot_sync answer",
												   ALLOCSET_DEFAULT_SIZES);
	courier.has_errors = has_errors(&courier);
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		send_batches(&courier);
		if (courier.flight == NIL)
			break;
		receive(&courier);
	}
	return courier.undefined ? HS_UNKNOWN_PROPERTY : HS_DELIVERED;
}
