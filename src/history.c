/*-------------------------------------------------------------------------
 *
 * history.c
 *	  Who owned a contact when.
 *
 * The history follows a page in its transaction: where a contact's owner is
 * not the one noted last, that ownership ends and another begins.  When the
 * change was is known only roughly then: at the latest when HubSpot last
 * changed the contact; and an owner may have come and gone between two runs.
 * So the contact is noted too, and at the run's end HubSpot is asked for the
 * property's own history (facts sections 4 and 6), which replaces what was
 * noted from its beginning on.  Where HubSpot does not answer that, the first
 * note stays.
 *
 * A contact that was merged away or deleted has no owner from then on; one in
 * the recycle bin keeps his.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "history.h"

/* HubSpot keeps fewer values of one property. */
#define MAX_VALUES 200

/*
 * Requests a run makes for histories of contacts whose owner may have changed
 * unseen: those that are new to us, and those where something has changed.
 */
#define MORE_REQUESTS 2

/* A value of the property, and since when. */
typedef struct Value
{
	const char *owner;			/* NULL: none */
	TimestampTz since;
} Value;

/* Parallel arrays that grow: ownerships to add. */
typedef struct Ownerships
{
	const char **ids;
	const char **owners;
	TimestampTz *since;
	TimestampTz *until;			/* DT_NOEND: he still does */
	int			n;
} Ownerships;

/* ------------------------------------------------------------------------
 * With a page
 * ------------------------------------------------------------------------
 */

/* A contact's owner, NULL for none. */
static const char *
owner_of(const HsJson *properties)
{
	const char *owner = hs_json_text(hs_json_member(properties,
													HS_OWNER_PROPERTY));

	return owner != NULL && owner[0] != '\0' ? owner : NULL;
}

/*
 * Whether a contact of which there is no history yet may have had other
 * owners since we follow contacts: not at the first load, whose past nobody
 * asks for, and not if nothing has happened since it was created.
 */
static bool
may_have_past(const HsStore *store, const HsRecord *record)
{
	TimestampTz created;

	return store->follows_owners &&
		!(hs_json_timestamp(hs_json_member(record->json, "createdAt"),
							&created) &&
		  record->updated_at <= created);
}

/* Changes to write, as arrays with room for all of a page. */
typedef struct Changes
{
	const char **opened;
	const char **owners;
	TimestampTz *since;
	int			nopened;
	const char **ended;
	TimestampTz *ended_at;
	int			nended;
	const char **urgent;		/* histories to read */
	int			nurgent;
	const char **reads;
	int			nreads;
} Changes;

/*
 * Sorts in a contact whose owner is not the one noted last.  Contacts that
 * the filters leave out are followed if they were known before.  One without
 * the property says nothing: HubSpot leaves out what the token may not see.
 */
static void
add_change(const HsStore *store, Changes *c, const HsOwnerChange *change,
		   const HsRecord *record)
{
	bool		told = hs_json_has(record->properties, HS_OWNER_PROPERTY);
	const char *owner = owner_of(record->properties);

	if (!change->known && (record->reason != NULL || owner == NULL))
		return;
	if (change->known)
		c->urgent[c->nurgent++] = record->id;
	else if (may_have_past(store, record))
		c->reads[c->nreads++] = record->id;
	if (!told)
		return;
	if (change->open)
	{
		c->ended[c->nended] = record->id;
		c->ended_at[c->nended++] = change->since;
	}
	c->opened[c->nopened] = record->id;
	c->since[c->nopened] = change->since;
	c->owners[c->nopened++] = owner;
}

/* Writes what has changed. */
static void
write_changes(const HsStore *store, List *changes, HsRecord *const *records)
{
	const pg_uuid_t *connection = &store->run->request.connection_id;
	size_t		size = sizeof(char *) * list_length(changes);
	Changes		c = {
		.opened = palloc(size),
		.owners = palloc(size),
		.since = palloc(sizeof(TimestampTz) * list_length(changes)),
		.ended = palloc(size),
		.ended_at = palloc(sizeof(TimestampTz) * list_length(changes)),
		.urgent = palloc(size),
		.reads = palloc(size)
	};
	ListCell   *lc;

	foreach(lc, changes)
	{
		const HsOwnerChange *change = lfirst(lc);

		add_change(store, &c, change, records[change->index]);
	}
	hs_catalog_close_owners(connection, c.ended, c.ended_at, c.nended);
	hs_catalog_open_owners(connection, c.opened, c.since, c.owners, c.nopened);
	hs_catalog_note_owner_reads(connection, true, c.urgent, c.nurgent);
	hs_catalog_note_owner_reads(connection, false, c.reads, c.nreads);
}

/*
 * Has the histories of contacts read whose rows were written: an owner may
 * have come and gone again, which no comparison shows.
 */
static void
note_written(const HsStore *store)
{
	const char **ids = palloc(sizeof(char *) *
							  Max(list_length(store->written), 1));
	ListCell   *lc;
	int			n = 0;

	foreach(lc, store->written)
		ids[n++] = lfirst(lc);
	hs_catalog_note_owner_reads(&store->run->request.connection_id, false, ids,
								n);
}

/* Compares contacts with their history. */
static void
note_owners(HsStore *store, HsRecord *const *records, int n, bool provisional)
{
	const char **ids = palloc(sizeof(char *) * n);
	const char **owners = palloc(sizeof(char *) * n);
	TimestampTz *changed = palloc(sizeof(TimestampTz) * n);
	List	   *changes;

	for (int i = 0; i < n; i++)
	{
		ids[i] = records[i]->id;
		owners[i] = owner_of(records[i]->properties);
		changed[i] = records[i]->updated_at ? records[i]->updated_at
			: DT_NOBEGIN;
	}
	changes = hs_catalog_owner_changes(&store->run->request.connection_id,
									   ids, owners, changed, n, provisional);
	if (changes != NIL)
		write_changes(store, changes, records);
	if (store->follows_owners && records[0]->reason == NULL &&
		!records[0]->archived)
		note_written(store);
}

/* Ends the ownership of contacts that exist no more. */
static void
end_owners(HsStore *store, HsRecord *const *records, int n)
{
	const char **ids = palloc(sizeof(char *) * n);
	TimestampTz *instants = palloc(sizeof(TimestampTz) * n);
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < n; i++)
	{
		ids[i] = records[i]->id;
		instants[i] = now;
	}
	hs_catalog_close_owners(&store->run->request.connection_id, ids, instants,
							n);
}

/*
 * Follows contacts that were stored or marked, all in the same way, in the
 * transaction that did it.  `provisional`: a search brought them.
 */
void
hs_history_note(HsStore *store, HsRecord *const *records, int n,
				bool provisional)
{
	const char *reason = records[0]->reason;

	if (reason != NULL && (strcmp(reason, HS_REASON_GONE) == 0 ||
						   strcmp(reason, HS_REASON_MERGED) == 0))
		end_owners(store, records, n);
	else
		note_owners(store, records, n, provisional);
}

/* ------------------------------------------------------------------------
 * At the end of a run
 * ------------------------------------------------------------------------
 */

/* Puts values into the order of time, leaving that of equal times as it is. */
static void
sort_values(Value *values, int n)
{
	for (int i = 1; i < n; i++)
	{
		Value		value = values[i];
		int			to = i;

		for (; to > 0 && values[to - 1].since > value.since; to--)
			values[to] = values[to - 1];
		values[to] = value;
	}
}

/*
 * Reads a contact's values of the property, the oldest first; of one instant
 * only the last counts.  Returns how many there are: 0 if there is a value
 * without a time, or the newest is not the contact's owner.
 */
static int
read_values(const HsJson *record, Value *values)
{
	const HsJson *list = hs_json_path(record, "propertiesWithHistory",
									  HS_OWNER_PROPERTY);
	int			n = Min(hs_json_length(list), MAX_VALUES);
	int			kept = 0;

	for (int i = 0; i < n; i++)
	{
		/* HubSpot sends the newest first. */
		const HsJson *entry = hs_json_element(list, n - 1 - i);
		const char *owner = hs_json_text(hs_json_member(entry, "value"));

		if (!hs_json_timestamp(hs_json_member(entry, "timestamp"),
							   &values[i].since))
			return 0;
		values[i].owner = owner != NULL && owner[0] != '\0' ? owner : NULL;
	}
	sort_values(values, n);
	for (int i = 0; i < n; i++)
	{
		if (kept > 0 && values[kept - 1].since == values[i].since)
			kept--;
		values[kept++] = values[i];
	}
	if (kept == 0 ||
		!hs_mapping_same_text(values[kept - 1].owner,
							  owner_of(hs_json_member(record, "properties"))))
		return 0;
	return kept;
}

/* Adds a contact's ownerships; neighbours with one owner become one. */
static void
add_ownerships(Ownerships *all, const char *id, const Value *values, int n)
{
	for (int i = 0; i < n; i++)
	{
		int			next = i + 1;

		while (next < n && hs_mapping_same_text(values[next].owner, values[i].owner))
			next++;
		if (values[i].owner != NULL)
		{
			all->ids[all->n] = id;
			all->owners[all->n] = values[i].owner;
			all->since[all->n] = values[i].since;
			all->until[all->n++] = next < n ? values[next].since : DT_NOEND;
		}
		i = next - 1;
	}
}

/* An answer's record of that id, NULL if it brings none. */
static const HsJson *
find_result(const HsJson *results, const char *id)
{
	for (int i = 0; i < hs_json_length(results); i++)
	{
		const HsJson *record = hs_json_element(results, i);
		const char *found = hs_json_text(hs_json_member(record, "id"));

		if (found != NULL && strcmp(found, id) == 0)
			return record;
	}
	return NULL;
}

/* Replaces the history of contacts by what an answer says of them. */
static void
replace_histories(HsStore *store, const char *const *ids, int n,
				  const HsJson *results)
{
	const pg_uuid_t *connection = &store->run->request.connection_id;
	const char **replaced = palloc(sizeof(char *) * n);
	TimestampTz *beginnings = palloc(sizeof(TimestampTz) * n);
	Value	   *values = palloc(sizeof(Value) * MAX_VALUES);
	size_t		texts = sizeof(char *) * n * MAX_VALUES;
	size_t		times = sizeof(TimestampTz) * n * MAX_VALUES;
	Ownerships	all = {palloc(texts), palloc(texts), palloc(times), palloc(times), 0};
	int			nreplaced = 0;

	for (int i = 0; i < n; i++)
	{
		const HsJson *record = find_result(results, ids[i]);
		int			nvalues = record ? read_values(record, values) : 0;

		if (nvalues == 0)
			continue;
		replaced[nreplaced] = ids[i];
		beginnings[nreplaced++] = values[0].since;
		add_ownerships(&all, ids[i], values, nvalues);
	}
	hs_catalog_cut_owners(connection, replaced, beginnings, nreplaced);
	hs_catalog_add_owners(connection, all.ids, all.owners, all.since,
						  all.until, all.n);
}

/*
 * Whether an answer has live records, but none that was asked for.  Then it
 * answers another question, and that it leaves out these says nothing about
 * them.
 */
static bool
is_foreign(const HsJson *results, const char *const *ids, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (find_result(results, ids[i]) != NULL)
			return false;
	}
	return hs_json_length(results) > 0;
}

/* Asks for contacts' histories.  Returns false if HubSpot does not tell. */
static bool
ask(HsStore *store, bool archived, const char *const *ids, int n,
	const HsJson **results)
{
	HsApi	   *api = store->run->api;
	HsApiCall  *call = hs_api_batch_read_history(api, store->type->object_type,
												 HS_OWNER_PROPERTY, archived,
												 ids, n);
	const HsJson *root;

	api->tolerates = HS_TOLERATE_BAD_ANSWER;
	root = hs_api_finish(api, call);
	*results = hs_json_member(root, "results");
	return root != NULL && (archived || !is_foreign(*results, ids, n));
}

/*
 * Asks for the histories of those contacts that an answer did not bring once
 * more: they may be in the recycle bin.
 */
static bool
ask_bin(HsStore *store, const char *const *ids, int n, const HsJson *live,
		const HsJson **results)
{
	const char *archived[HS_API_HISTORY_LIMIT] = {NULL};
	int			narchived = 0;

	*results = NULL;
	for (int i = 0; i < n; i++)
	{
		if (find_result(live, ids[i]) == NULL)
			archived[narchived++] = ids[i];
	}
	return narchived == 0 || ask(store, true, archived, narchived, results);
}

/* Writes what was asked, or that there was no answer. */
static void
save_answers(HsStore *store, const char *const *ids, int n, bool answered,
			 const HsJson *live, const HsJson *archived)
{
	const pg_uuid_t *connection = &store->run->request.connection_id;

	hs_run_begin(store->run);
	if (answered)
	{
		replace_histories(store, ids, n, live);
		replace_histories(store, ids, n, archived);
		hs_catalog_drop_owner_reads(connection, ids, n);
	}
	else
		hs_catalog_count_owner_reads(connection, ids, n);
	hs_run_commit(store->run);
}

/*
 * Reads some contacts' histories, those with ids after `after`.  Returns the
 * last of them, NULL if there is none or HubSpot did not answer.
 */
static const char *
read_some(HsStore *store, const char *after, bool urgent)
{
	const char *ids[HS_API_HISTORY_LIMIT];
	const HsJson *live;
	const HsJson *archived = NULL;
	bool		answered;
	List	   *list;
	ListCell   *lc;
	int			n = 0;

	hs_run_begin(store->run);
	list = hs_catalog_owner_reads(&store->run->request.connection_id, after,
								  urgent, HS_API_HISTORY_LIMIT);
	hs_run_commit(store->run);
	foreach(lc, list)
		ids[n++] = lfirst(lc);
	if (n == 0)
		return NULL;
	answered = ask(store, false, ids, n, &live) &&
		ask_bin(store, ids, n, live, &archived);
	save_answers(store, ids, n, answered, live, archived);
	return answered ? ids[n - 1] : NULL;
}

/* Reads histories as long as there are some, at most so many requests. */
static void
read_all(HsStore *store, bool urgent, int max_requests)
{
	MemoryContext context = AllocSetContextCreate(store->run->context,
												  "hubspot_sync history",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	char	   *after = MemoryContextStrdup(store->run->context, "");

	for (int i = 0; i < max_requests; i++)
	{
		const char *last = read_some(store, after, urgent);

		pfree(after);
		after = last ? MemoryContextStrdup(store->run->context, last) : NULL;
		MemoryContextReset(context);
		if (after == NULL)
			break;
	}
	if (after != NULL)
		pfree(after);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/*
 * Asks HubSpot for the histories of the contacts noted: of all whose owner
 * has changed, and of some of the others.  No transaction may be open.
 */
void
hs_history_read(HsStore *store)
{
	if (!store->mapping->keeps_owner_history)
		return;
	read_all(store, true, PG_INT32_MAX);
	read_all(store, false, store->run->counters.changed > 0 ? MORE_REQUESTS : 1);
}
