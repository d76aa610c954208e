/*-------------------------------------------------------------------------
 *
 * change.c
 *	  What of a student differs from what HubSpot has accepted.
 *
 * A student is compared by the fingerprint of the values; only of those that
 * differ are the accepted values read.  What is sent is always the whole set
 * of values, which heals what somebody has edited in HubSpot, and "" for a
 * value that was accepted once and is no more (facts section 6).  What is not
 * computed, because a table is missing, stays as it is.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "change.h"
#include "json.h"

/* A student's state by id. */
typedef struct StateEntry
{
	const char *id;				/* hash key */
	HsProgressState *state;
} StateEntry;

static uint32
hash_id(const void *key, Size size)
{
	const char *id = *(const char *const *) key;

	return string_hash(id, strlen(id) + 1);
}

static int
match_id(const void *a, const void *b, Size size)
{
	return strcmp(*(const char *const *) a, *(const char *const *) b);
}

/* A table of states by the students' ids. */
static HTAB *
index_states(List *states)
{
	HASHCTL		info = {
		.keysize = sizeof(char *),
		.entrysize = sizeof(StateEntry),
		.hash = hash_id,
		.match = match_id,
		.hcxt = CurrentMemoryContext
	};
	HTAB	   *table = hash_create("students", list_length(states) + 1, &info,
									HASH_ELEM | HASH_FUNCTION | HASH_COMPARE |
										HASH_CONTEXT);
	ListCell   *lc;

	foreach(lc, states)
	{
		HsProgressState *state = lfirst(lc);
		const char *id = state->user_id;
		StateEntry *entry = hash_search(table, &id, HASH_ENTER, NULL);

		entry->state = state;
	}
	return table;
}

static HsProgressState *
find_state(HTAB *table, const char *id)
{
	StateEntry *entry = hash_search(table, &id, HASH_FIND, NULL);

	return entry ? entry->state : NULL;
}

/* Whether a student's values are those that were accepted. */
static bool
is_unchanged(const HsChange *change)
{
	return change->state != NULL &&
		change->state->fingerprint == change->fingerprint &&
		strcmp(change->state->email, change->student->address) == 0;
}

/* Whether a value tells that a student has done something. */
static bool
is_substantial(const char *value)
{
	if (value == NULL || strspn(value, "0.") == strlen(value))
		return false;
	return strcmp(value, "[]") != 0 &&
		strcmp(value, hs_level_statuses[0]) != 0;
}

/* A student's value of a property; *computed says whether there is such one. */
static const char *
value_of(const HsProgress *progress, const HsStudent *student,
		 const char *property, bool *computed)
{
	ListCell   *lc;

	foreach(lc, progress->metrics)
	{
		if (strcmp(((HsMetric *) lfirst(lc))->name, property) == 0)
		{
			*computed = true;
			return student->values[foreach_current_index(lc)];
		}
	}
	*computed = false;
	return NULL;
}

/* Whether a student has a value that tells something. */
static bool
has_substance(const HsProgress *progress, const HsStudent *student)
{
	for (int i = 0; i < list_length(progress->metrics); i++)
	{
		if (is_substantial(student->values[i]))
			return true;
	}
	return false;
}

/* Appends a member to a JSON object that may have some. */
static void
append_value(StringInfo out, const char *name, const char *value)
{
	if (out->len > 1)
		appendStringInfoChar(out, ',');
	hs_json_append_string(out, name);
	appendStringInfoChar(out, ':');
	hs_json_append_string(out, value);
}

/*
 * Compares a student with what was accepted, member by member: clears in
 * `properties` what is no more, keeps in `accepted` what is not computed, but
 * not of another contact.
 */
static void
compare_accepted(const HsProgress *progress, HsChange *change,
				 const HsJson *old, bool same_contact, StringInfo properties,
				 StringInfo accepted)
{
	bool		substance = false;
	bool		kept = has_substance(progress, change->student);
	const char **names;
	int			n = hs_json_names(old, &names);

	for (int i = 0; i < n; i++)
	{
		const char *before = hs_json_text(hs_json_member(old, names[i]));
		bool		computed;
		const char *now = value_of(progress, change->student, names[i],
								   &computed);

		if (before == NULL)
			continue;
		substance |= is_substantial(before);
		if (!computed && same_contact)
		{
			append_value(accepted, names[i], before);
			kept |= is_substantial(before);
		}
		else if (!computed)
			continue;
		else if (now == NULL)
			append_value(properties, names[i], "");
	}
	change->emptied = substance && !kept;
}

/* Whether every value was accepted as it is. */
static bool
has_same_values(const HsProgress *progress, const HsChange *change,
				const HsJson *old)
{
	ListCell   *lc;

	foreach(lc, progress->metrics)
	{
		const char *name = ((HsMetric *) lfirst(lc))->name;
		const char *now = change->student->values[foreach_current_index(lc)];
		const char *before = hs_json_text(hs_json_member(old, name));

		if ((now == NULL) != (before == NULL) ||
			(now != NULL && strcmp(now, before) != 0))
			return false;
	}
	return true;
}

/*
 * Compares a student with what was accepted, and fills the texts accordingly.
 */
static void
compare_state(const HsProgress *progress, HsChange *change, bool all,
			  StringInfo properties, StringInfo accepted)
{
	const char *text = change->state->properties;
	const HsJson *old = hs_json_parse(text, strlen(text)).root;
	bool		same_address = strcmp(change->state->email,
									  change->student->address) == 0;

	if (same_address)
		change->contact_id = change->state->contact_id;
	compare_accepted(progress, change, old, same_address, properties, accepted);
	change->renewed = !all && same_address &&
		change->state->fingerprint != 0 &&
		has_same_values(progress, change, old);
	change->differs = !change->renewed;
}

/*
 * Finds out what to send of a student whose fingerprint is another one.
 * `scratch` is for what is needed meanwhile.
 */
static void
describe(const HsProgress *progress, HsChange *change, bool all,
		 MemoryContext scratch)
{
	MemoryContext old = MemoryContextSwitchTo(scratch);
	StringInfoData properties;
	StringInfoData accepted;

	initStringInfo(&properties);
	appendStringInfoChar(&properties, '{');
	hs_progress_append_values(&properties, progress, change->student);
	initStringInfo(&accepted);
	appendBinaryStringInfo(&accepted, properties.data, properties.len);
	change->differs = true;
	if (change->state != NULL)
		compare_state(progress, change, all, &properties, &accepted);
	/* HubSpot may refuse to be told nothing. */
	if (properties.len == 1)
		change->differs = false;
	appendStringInfoChar(&properties, '}');
	appendStringInfoChar(&accepted, '}');
	MemoryContextSwitchTo(old);
	change->properties = pnstrdup(properties.data, properties.len);
	change->accepted = change->properties;
	if (strcmp(properties.data, accepted.data) != 0)
		change->accepted = pnstrdup(accepted.data, accepted.len);
	MemoryContextReset(scratch);
}

/* Reads the accepted values of the students that may differ. */
static HTAB *
read_accepted(const pg_uuid_t *connection_id, const HsChange *changes, int n,
			  bool all)
{
	const char **ids = palloc(sizeof(char *) * Max(n, 1));
	int			count = 0;

	for (int i = 0; i < n; i++)
	{
		if (changes[i].state != NULL && (all || !is_unchanged(&changes[i])))
			ids[count++] = changes[i].student->id;
	}
	if (count == 0)
		return index_states(NIL);
	return index_states(hs_catalog_progress_states(connection_id, ids, count,
												   true));
}

/*
 * A view may have a student twice; the first time counts.  They come in the
 * order of their ids.
 */
static void
drop_repeated(HsChange *changes, int n)
{
	for (int i = 1; i < n; i++)
	{
		if (strcmp(changes[i].student->id, changes[i - 1].student->id) != 0)
			continue;
		changes[i].differs = false;
		changes[i].renewed = false;
		changes[i].emptied = false;
		changes[i].problem = NULL;
	}
}

/*
 * Compares students with what HubSpot has accepted of them.  Returns an array
 * parallel to the list, in the current memory context.  With `all` even what
 * has not changed is to be sent.  Needs a transaction.
 */
HsChange *
hs_change_find(const HsProgress *progress, const pg_uuid_t *connection_id,
			   List *students, bool all)
{
	int			n = list_length(students);
	HsChange   *changes = palloc0(sizeof(HsChange) * Max(n, 1));
	const char **ids = palloc(sizeof(char *) * Max(n, 1));
	HTAB	   *states;
	MemoryContext scratch;
	ListCell   *lc;

	foreach(lc, students)
		ids[foreach_current_index(lc)] = ((HsStudent *) lfirst(lc))->id;
	states = index_states(hs_catalog_progress_states(connection_id, ids, n,
													 false));
	foreach(lc, students)
	{
		HsChange   *change = &changes[foreach_current_index(lc)];

		change->student = lfirst(lc);
		change->state = find_state(states, change->student->id);
		change->fingerprint = hs_progress_fingerprint(progress, change->student);
		change->problem = hs_progress_problem(progress, change->student,
											  &change->category);
		if (change->problem != NULL && change->student->address == NULL)
			((HsStudent *) lfirst(lc))->address = "";
	}
	states = read_accepted(connection_id, changes, n, all);
	scratch = AllocSetContextCreate(CurrentMemoryContext,
									"hubspot_sync comparison",
									ALLOCSET_SMALL_SIZES);
	for (int i = 0; i < n; i++)
	{
		HsChange   *change = &changes[i];

		if (!all && is_unchanged(change))
			continue;
		if (change->state != NULL)
		{
			/* It may have gone meanwhile. */
			change->state = find_state(states, change->student->id);
		}
		describe(progress, change, all, scratch);
	}
	MemoryContextDelete(scratch);
	drop_repeated(changes, n);
	return changes;
}
