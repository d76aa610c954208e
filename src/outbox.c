/*-------------------------------------------------------------------------
 *
 * outbox.c
 *	  Students on their way to HubSpot.
 *
 * Before anything is sent, everybody is compared: the push must know how many
 * would lose their values.  What differs waits in a tuplestore, which outlives
 * transactions and goes to a temporary file when it gets large, so that memory
 * does not grow with the number of students.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/tupdesc.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/tuplestore.h"

#include "json.h"
#include "outbox.h"

/* Memory that is used before a file is, in kB. */
#define OUTBOX_MEMORY 4096

#define COLUMNS 7

/* Columns of the tuplestore. */
enum
{
	COL_ID,
	COL_EMAIL,
	COL_ADDRESS,
	COL_CONTACT,
	COL_PROPERTIES,
	COL_ACCEPTED,
	COL_FINGERPRINT
};

struct HsOutbox
{
	MemoryContext context;
	ResourceOwner owner;		/* of the file, across transactions */
	TupleDesc	desc;
	TupleTableSlot *slot;
	Tuplestorestate *store;
};

/*
 * An empty outbox.  It belongs to a context that outlives transactions; a
 * process that ends without destroying it leaves no file behind.
 */
HsOutbox *
hs_outbox_create(MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	ResourceOwner old_owner = CurrentResourceOwner;
	HsOutbox   *outbox = palloc0(sizeof(HsOutbox));

	outbox->context = context;
	outbox->owner = ResourceOwnerCreate(NULL, "hubspot_sync outbox");
	outbox->desc = CreateTemplateTupleDesc(COLUMNS);
	for (int i = 0; i < COLUMNS; i++)
		TupleDescInitBuiltinEntry(outbox->desc, i + 1, "",
								  i == COL_FINGERPRINT ? INT8OID : TEXTOID,
								  -1, 0);
	outbox->slot = MakeSingleTupleTableSlot(outbox->desc, &TTSOpsMinimalTuple);
	CurrentResourceOwner = outbox->owner;
	outbox->store = tuplestore_begin_heap(false, true, OUTBOX_MEMORY);
	CurrentResourceOwner = old_owner;
	MemoryContextSwitchTo(old);
	return outbox;
}

/*
 * Adds a student who differs.  Needs a transaction, for the temporary file.
 */
void
hs_outbox_put(HsOutbox *outbox, const HsChange *change)
{
	ResourceOwner old_owner = CurrentResourceOwner;
	const char *texts[COLUMNS] = {
		[COL_ID] = change->student->id,
		[COL_EMAIL] = change->student->email,
		[COL_ADDRESS] = change->student->address,
		[COL_CONTACT] = change->contact_id,
		[COL_PROPERTIES] = change->properties,
		[COL_ACCEPTED] = change->accepted == change->properties ? NULL
		: change->accepted
	};
	Datum		values[COLUMNS] = {0};
	bool		nulls[COLUMNS] = {false};

	for (int i = 0; i < COL_FINGERPRINT; i++)
	{
		nulls[i] = texts[i] == NULL;
		if (!nulls[i])
			values[i] = CStringGetTextDatum(texts[i]);
	}
	values[COL_FINGERPRINT] = Int64GetDatum(change->fingerprint);
	CurrentResourceOwner = outbox->owner;
	tuplestore_putvalues(outbox->store, outbox->desc, values, nulls);
	CurrentResourceOwner = old_owner;
}

/* Copies a text column to *p, which moves on; NULL for null. */
static char *
take_text(TupleTableSlot *slot, int column, char **p)
{
	text	   *value;
	char	   *start = *p;
	int			length;

	if (slot->tts_isnull[column])
		return NULL;
	value = DatumGetTextPP(slot->tts_values[column]);
	length = VARSIZE_ANY_EXHDR(value);
	memcpy(start, VARDATA_ANY(value), length);
	start[length] = '\0';
	*p = start + length + 1;
	return start;
}

/*
 * Takes the next student out, NULL at the end.
 */
HsParcel *
hs_outbox_take(HsOutbox *outbox, MemoryContext context)
{
	ResourceOwner old_owner = CurrentResourceOwner;
	TupleTableSlot *slot = outbox->slot;
	Size		size = sizeof(HsParcel);
	HsParcel   *parcel;
	char	   *p;
	bool		found;

	CurrentResourceOwner = outbox->owner;
	found = tuplestore_gettupleslot(outbox->store, true, false, slot);
	CurrentResourceOwner = old_owner;
	if (!found)
		return NULL;
	slot_getallattrs(slot);
	for (int i = 0; i < COL_FINGERPRINT; i++)
	{
		if (!slot->tts_isnull[i])
			size += VARSIZE_ANY_EXHDR(DatumGetPointer(slot->tts_values[i])) + 1;
	}
	parcel = MemoryContextAllocZero(context, size);
	p = (char *) (parcel + 1);
	parcel->id = take_text(slot, COL_ID, &p);
	parcel->email = take_text(slot, COL_EMAIL, &p);
	parcel->address = take_text(slot, COL_ADDRESS, &p);
	parcel->properties = take_text(slot, COL_PROPERTIES, &p);
	parcel->accepted = take_text(slot, COL_ACCEPTED, &p);
	if (parcel->accepted == NULL)
		parcel->accepted = parcel->properties;
	parcel->fingerprint = DatumGetInt64(slot->tts_values[COL_FINGERPRINT]);
	hs_parcel_set_contact(parcel, context, take_text(slot, COL_CONTACT, &p));
	ExecClearTuple(slot);
	return parcel;
}

/*
 * Frees an outbox and what is left in it.
 */
void
hs_outbox_destroy(HsOutbox *outbox)
{
	tuplestore_end(outbox->store);
	ExecDropSingleTupleTableSlot(outbox->slot);
	ResourceOwnerRelease(outbox->owner, RESOURCE_RELEASE_BEFORE_LOCKS, true, true);
	ResourceOwnerRelease(outbox->owner, RESOURCE_RELEASE_LOCKS, true, true);
	ResourceOwnerRelease(outbox->owner, RESOURCE_RELEASE_AFTER_LOCKS, true, true);
	ResourceOwnerDelete(outbox->owner);
	pfree(outbox);
}

/*
 * Adds a parcel at the end of a queue.
 */
void
hs_parcels_add(HsParcels *parcels, HsParcel *parcel)
{
	parcel->next = NULL;
	if (parcels->last != NULL)
		parcels->last->next = parcel;
	else
		parcels->first = parcel;
	parcels->last = parcel;
	parcels->n++;
}

/*
 * Takes the first parcel out of a queue, NULL if there is none.
 */
HsParcel *
hs_parcels_take(HsParcels *parcels)
{
	HsParcel   *parcel = parcels->first;

	if (parcel == NULL)
		return NULL;
	parcels->first = parcel->next;
	if (parcels->first == NULL)
		parcels->last = NULL;
	parcels->n--;
	parcel->next = NULL;
	return parcel;
}

/*
 * Says which contact a parcel goes to; NULL: that is not known any more.
 */
void
hs_parcel_set_contact(HsParcel *parcel, MemoryContext context,
					  const char *contact_id)
{
	char	   *copy = contact_id ? MemoryContextStrdup(context, contact_id) : NULL;

	if (parcel->contact_id != NULL)
		pfree(parcel->contact_id);
	parcel->contact_id = copy;
}

/*
 * Has a parcel clear the properties of these names that it does not set.
 */
void
hs_parcel_clear(HsParcel *parcel, MemoryContext context,
				const char *const *names, int n)
{
	const HsJson *present = hs_json_parse(parcel->properties,
										  strlen(parcel->properties))
								.root;
	StringInfoData text;
	char	   *copy;

	initStringInfo(&text);
	appendStringInfoString(&text, parcel->properties);
	text.data[--text.len] = '\0';	/* the closing brace */
	for (int i = 0; i < n; i++)
	{
		if (hs_json_has(present, names[i]))
			continue;
		if (text.len > 1)
			appendStringInfoChar(&text, ',');
		hs_json_append_string(&text, names[i]);
		appendStringInfoString(&text, ":\"\"");
	}
	appendStringInfoChar(&text, '}');
	copy = MemoryContextStrdup(context, text.data);
	if (parcel->extended != NULL)
		pfree(parcel->extended);
	parcel->extended = copy;
	parcel->properties = copy;
}

/*
 * Frees a parcel that is in no queue any more.
 */
void
hs_parcel_free(HsParcel *parcel)
{
	if (parcel->extended != NULL)
		pfree(parcel->extended);
	if (parcel->contact_id != NULL)
		pfree(parcel->contact_id);
	pfree(parcel);
}
