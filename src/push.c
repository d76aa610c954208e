/*-------------------------------------------------------------------------
 *
 * push.c
 *	  Students' progress onto HubSpot's contacts: the run.
 *
 *	  compare	all students, slice by slice, with what was accepted; those
 *				that differ go to the outbox
 *	  stop		if too many would lose all their values
 *	  ensure	the properties exist
 *	  send		look contacts up by e-mail, update them in batches
 *
 * The comparison comes first as a whole, since nothing may be sent before it
 * is known how many students would lose their values.  Requests are sent and
 * waited for without a transaction; what an answer says is written in one
 * short transaction (deliver.c).  There is no checkpoint: what was accepted
 * is noted with each answer, and sending something twice changes nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"

#include "change.h"
#include "deliver.h"
#include "guc.h"
#include "mapping.h"
#include "outbox.h"
#include "properties.h"
#include "push.h"

/* A push stops if more than this share of the students, and at least so many,
 * would lose every value they had. */
#define EMPTIED_SHARE 0.1
#define EMPTIED_LEAST 20

/* How often a push begins anew because properties have changed. */
#define MAX_ROUNDS 4

typedef struct Push
{
	HsRun	   *run;
	HsProgressScope scope;
	bool		dry_run;
	bool		properties_only;
	bool		all;			/* send what has not changed, too */
	List	   *unusable;		/* of HsKnownProperty * */
	bool		ensured;		/* the properties were compared in this run */
	bool		denied;			/* HubSpot said that it has not got one */

	/* one round */
	MemoryContext round_context;
	MemoryContext slice_context;
	HsProgress *progress;
	HsOutbox   *outbox;
	int			waiting;		/* students in the outbox */
	int			known;			/* students of whom something was accepted */
	int			emptied;
	int			students;
	int			rejected;		/* in a dry run */
} Push;

/* ------------------------------------------------------------------------
 * Preparing
 * ------------------------------------------------------------------------
 */

/* What a run is about, from its request. */
static Push *
prepare(HsRun *run)
{
	Push	   *push = MemoryContextAllocZero(run->context, sizeof(Push));
	const char *mode = run->request.mode;
	const char *student = strstr(run->request.scope, HS_STUDENT_SCOPE);

	push->run = run;
	push->scope.owner = GetUserId();
	push->dry_run = strcmp(mode, "dry_run") == 0;
	push->properties_only = strcmp(mode, "properties") == 0;
	push->all = strcmp(mode, "full") == 0;
	if (student != NULL)
		push->scope.email = student + strlen(HS_STUDENT_SCOPE);
	if (strcmp(mode, "auto") == 0)
		mode = "incremental";
	hs_run_begin(run);
	hs_catalog_start_run(&run->id, mode, NULL, NULL, NULL);
	hs_run_commit(run);
	return push;
}

/* Looks at the school's tables, in a context and a transaction of its own. */
static HsProgress *
open_progress(Push *push, MemoryContext context, List *without)
{
	MemoryContext old;
	HsProgress *progress;

	hs_run_begin(push->run);
	old = MemoryContextSwitchTo(context);
	/* It may have been configured by others since the request. */
	hs_mapping_check_roles(hs_run_type(push->run), GetUserId());
	progress = hs_progress_open(&push->scope, without);
	MemoryContextSwitchTo(old);
	hs_run_commit(push->run);
	return progress;
}

/* Whether two lists name the same properties, each once, in any order. */
static bool
same_names(List *a, List *b)
{
	ListCell   *la;

	if (list_length(a) != list_length(b))
		return false;
	foreach(la, a)
	{
		const char *name = ((HsKnownProperty *) lfirst(la))->name;
		bool		found = false;
		ListCell   *lb;

		foreach(lb, b)
			found |= strcmp(((HsKnownProperty *) lfirst(lb))->name, name) == 0;
		if (!found)
			return false;
	}
	return true;
}

/*
 * Compares HubSpot's properties with all that are needed.  Returns whether
 * the students must be compared anew: other properties can be used, or some
 * have lost their values.
 */
static bool
ensure_properties(Push *push)
{
	MemoryContext context = AllocSetContextCreate(push->run->context,
												  "hubspot_sync sources",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	HsProgress *progress = open_progress(push, context, NIL);
	HsPropertyReport report;
	bool		changed;

	hs_properties_ensure(push->run, progress, &report);
	changed = report.forgotten > 0 ||
		!same_names(report.unusable, push->unusable);
	push->unusable = report.unusable;
	push->ensured = true;
	if (push->properties_only)
	{
		push->run->counters.processed = report.needed;
		push->run->counters.changed = report.created;
		push->run->counters.unchanged = report.needed - report.created -
			list_length(report.unusable);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return changed;
}

/*
 * Takes over which properties could not be used when that was last looked at,
 * or looks again if that was long ago.
 */
static void
recall_properties(Push *push)
{
	MemoryContext old = MemoryContextSwitchTo(push->run->context);
	bool		fresh;

	hs_run_begin(push->run);
	push->unusable = hs_properties_unusable(&push->run->request.connection_id,
											&fresh);
	hs_run_commit(push->run);
	MemoryContextSwitchTo(old);
	if (push->unusable != NIL && !fresh && !push->dry_run)
		(void) ensure_properties(push);
}

/* Whether the properties were compared lately, in this run or another. */
static bool
properties_known(Push *push)
{
	MemoryContext old;
	bool		known;

	if (push->ensured)
		return true;
	old = MemoryContextSwitchTo(push->slice_context);
	hs_run_begin(push->run);
	known = hs_properties_known(push->run, push->progress);
	hs_run_commit(push->run);
	MemoryContextSwitchTo(old);
	MemoryContextReset(push->slice_context);
	return known;
}

/* ------------------------------------------------------------------------
 * Comparing
 * ------------------------------------------------------------------------
 */

/* Writes down why a student cannot be sent. */
static void
reject(Push *push, const HsChange *change)
{
	const HsRunRequest *request = &push->run->request;
	HsDeadLetter letter = {
		.record_id = hs_json_clip(change->student->id, HS_MAX_STUDENT_ID),
		.email = change->student->email,
		.category = change->category,
		.message = change->problem
	};

	hs_catalog_dead_letter(&push->run->id, &request->connection_id,
						   request->sync_type, &letter);
}

/* Notes the new fingerprints of students whose values are as accepted. */
static void
renew(Push *push, const HsChange *changes, int n)
{
	HsAcceptances accepted;

	hs_acceptances_init(&accepted, n);
	for (int i = 0; i < n; i++)
	{
		int			j = accepted.n;

		if (!changes[i].renewed || changes[i].problem != NULL)
			continue;
		accepted.users[j] = changes[i].student->id;
		accepted.emails[j] = changes[i].student->address;
		accepted.contacts[j] = changes[i].contact_id;
		accepted.properties[j] = changes[i].accepted;
		accepted.fingerprints[j] = psprintf(INT64_FORMAT, changes[i].fingerprint);
		accepted.n++;
	}
	if (!push->dry_run)
		hs_catalog_save_progress(&push->run->request.connection_id, &accepted);
}

/* Sorts one slice's students: rejected, to be sent, or as they were. */
static void
sort_students(Push *push, const HsChange *changes, int n,
			  HsRunCounters *counters)
{
	for (int i = 0; i < n; i++)
	{
		const HsChange *change = &changes[i];

		push->known += change->state != NULL;
		if (change->problem != NULL && push->dry_run)
			push->rejected++;
		else if (change->problem != NULL)
		{
			reject(push, change);
			counters->processed++;
			counters->failed++;
		}
		else if (!change->differs)
			counters->unchanged++;
		else if (push->dry_run)
			counters->processed++;
		else
		{
			hs_outbox_put(push->outbox, change);
			push->waiting++;
			push->emptied += change->emptied;
		}
	}
}

/* Compares one slice of students. */
static void
compare_slice(Push *push)
{
	MemoryContext old = MemoryContextSwitchTo(push->slice_context);
	HsRunCounters next = push->run->counters;
	HsChange   *changes;
	List	   *students;

	hs_api_report(push->run->api, "computing progress");
	hs_run_begin(push->run);
	students = hs_progress_read(push->progress, hs_progress_slice);
	changes = hs_change_find(push->progress, &push->run->request.connection_id,
							 students, push->all);
	sort_students(push, changes, list_length(students), &next);
	renew(push, changes, list_length(students));
	hs_run_save(push->run, &next, NULL);
	hs_run_commit(push->run);
	hs_run_count(push->run, &next);
	push->students += list_length(students);
	MemoryContextSwitchTo(old);
	MemoryContextReset(push->slice_context);
}

/* Throws if somebody asked for a student there is not. */
static void
check_found(Push *push)
{
	if (push->scope.email == NULL || push->students > 0)
		return;
	push->run->reason = "no_student";
	ereport(ERROR,
			(errcode(ERRCODE_NO_DATA_FOUND),
			 errmsg("no student has the e-mail address \"%s\"",
					hs_json_clip(push->scope.email, 300)),
			 errhint("Look at preview_student_progress().")));
}

/* Compares all students that the run is about. */
static void
compare_all(Push *push)
{
	push->progress = open_progress(push, push->round_context,
								   hs_properties_names(push->unusable));
	push->run->remark = hs_progress_remarks(push->progress);
	if (push->run->remark != NULL)
		push->run->remark = MemoryContextStrdup(push->run->context,
												push->run->remark);
	push->outbox = hs_outbox_create(push->round_context);
	while (!push->progress->finished)
	{
		CHECK_FOR_INTERRUPTS();
		compare_slice(push);
	}
	check_found(push);
	if (push->rejected > 0)
		push->run->remark = MemoryContextStrdup(push->run->context,
												psprintf("%d students cannot be sent, see preview_student_progress(); %s",
														 push->rejected,
														 push->run->remark ? push->run->remark : "nothing is left out"));
}

/*
 * Throws if too many students would lose every value they had, unless
 * somebody has accepted that: a table that was emptied by mistake must not
 * empty HubSpot.
 */
static void
check_emptied(Push *push)
{
	const HsRunRequest *request = &push->run->request;
	MemoryContext old;
	bool		accepted;

	if (push->emptied < EMPTIED_LEAST)
		return;
	old = MemoryContextSwitchTo(push->slice_context);
	hs_run_begin(push->run);
	accepted = hs_catalog_emptiness_accepted(&request->connection_id,
											 request->sync_type);
	hs_run_commit(push->run);
	MemoryContextSwitchTo(old);
	if (accepted || push->emptied <= push->known * EMPTIED_SHARE)
		return;
	push->run->reason = "mass_empty";
	push->run->refused = push->emptied;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%d of %d students would lose every value that HubSpot has of them",
					push->emptied, push->known),
			 errdetail("Nothing was sent."),
			 errhint("See whether one of the school's tables was emptied by mistake. If this is as it should be, call accept_hubspot_absence() with this run's id and push again.")));
}

/* ------------------------------------------------------------------------
 * Rounds
 * ------------------------------------------------------------------------
 */

/* Begins a round with everything still to be counted. */
static void
begin_round(Push *push)
{
	HsRunCounters *counters = &push->run->counters;

	push->round_context = AllocSetContextCreate(push->run->context,
												"hubspot_sync push",
												ALLOCSET_DEFAULT_SIZES);
	push->slice_context = AllocSetContextCreate(push->round_context,
												"hubspot_sync slice",
												ALLOCSET_DEFAULT_SIZES);
	push->waiting = 0;
	push->known = 0;
	push->emptied = 0;
	push->students = 0;
	counters->processed = counters->changed;
	counters->failed = 0;
	counters->unchanged = 0;
}

static void
end_round(Push *push)
{
	if (push->outbox != NULL)
		hs_outbox_destroy(push->outbox);
	push->outbox = NULL;
	push->progress = NULL;
	MemoryContextSwitchTo(push->run->context);
	MemoryContextDelete(push->round_context);
}

/*
 * Compares and sends.  Returns false if it has to be done again, because the
 * properties are not as they were thought to be.
 */
static bool
go_round(Push *push)
{
	HsDelivery	delivery = {
		.run = push->run,
		.progress = NULL
	};
	HsDeliveryEnd end;

	compare_all(push);
	if (push->dry_run || push->waiting == 0)
		return true;
	check_emptied(push);
	if (!properties_known(push) && ensure_properties(push))
		return false;
	delivery.progress = push->progress;
	delivery.outbox = push->outbox;
	delivery.context = push->round_context;
	delivery.insists = push->denied;
	end = hs_deliver(&delivery);
	if (end == HS_UNKNOWN_PROPERTY || delivery.doubtful)
		hs_properties_doubt(push->run);
	if (end == HS_DELIVERED)
		return true;
	push->denied = true;
	(void) ensure_properties(push);
	return false;
}

/* Writes down which properties cannot be used. */
static void
report_properties(Push *push, HsRunCounters *counters)
{
	const HsRunRequest *request = &push->run->request;
	ListCell   *lc;

	foreach(lc, push->unusable)
	{
		const HsKnownProperty *property = lfirst(lc);
		HsDeadLetter letter = {
			.record_id = property->name,
			.property = property->name,
			.category = "definition",
			.message = property->problem
		};

		hs_catalog_dead_letter(&push->run->id, &request->connection_id,
							   request->sync_type, &letter);
		counters->failed++;
		if (!push->properties_only)
			counters->processed++;
	}
}

/* Closes the run. */
static void
complete(Push *push)
{
	HsRun	   *run = push->run;
	const HsRunRequest *request = &run->request;

	hs_run_begin(run);
	MemoryContextSwitchTo(run->context);
	if (!push->dry_run)
		report_properties(push, &run->counters);
	/* It has looked at everybody, or at all properties. */
	if (request->scope[0] == '\0' || push->properties_only)
		hs_catalog_resolve_unmet(&request->connection_id, request->sync_type,
								 push->properties_only ? "definition" : NULL,
								 &run->id);
	hs_run_complete(run);
	hs_run_commit(run);
}

/*
 * Executes a push.  Throws whatever stops it; what was accepted before is
 * noted, and the next run sends the rest.
 */
void
hs_push_run(HsRun *run)
{
	Push	   *push = prepare(run);
	bool		done = false;

	if (push->properties_only)
	{
		(void) ensure_properties(push);
		complete(push);
		return;
	}
	recall_properties(push);
	for (int i = 0; i < MAX_ROUNDS && !done; i++)
	{
		begin_round(push);
		done = go_round(push);
		end_round(push);
	}
	if (!done)
	{
		run->reason = "properties";
		ereport(ERROR,
				(errcode(ERRCODE_FDW_ERROR),
				 errmsg("HubSpot's properties keep changing while they are written to"),
				 errhint("See whether something else deletes or creates them; then push again.")));
	}
	complete(push);
}
