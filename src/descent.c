/*-------------------------------------------------------------------------
 *
 * descent.c
 *	  The search side of a full load by list and search.
 *
 * A list brings 100 records a request, and its next page can be asked for
 * only when the last one has come.  Searches have a limit of their own and
 * bring 200.  So while the list walks up from the lowest id, searches walk
 * down from the highest, until the two meet.
 *
 * The invariant:
 *
 *	  Ids up to where the list stands come from the list and are the truth.
 *	  Ids from `high` on come from the index and are provisional.  Whatever
 *	  the index hid, or showed as it was before, was created or changed after
 *	  T0 less the index's lag, T0 being HubSpot's clock at the load's first
 *	  answer.  So the search for changes since T0 less the overlap, which the
 *	  load appends as its last step, finds all of it if the overlap is at
 *	  least the lag.
 *
 * Deleting and restoring change no record that could be searched for.  What
 * was archived meanwhile is found by the walk through the recycle bin that
 * follows; what was merged away, by the survivor, which changed.  What was
 * restored or deleted for good so late that the index does not show it yet is
 * missing, or there, until the next full run by list.  That the index does not
 * show a record proves nothing: only the list's part notes absences.
 *
 * The list alone decides that the load is over, and waits for no search, nor
 * for its repetition.  The search side may give up at any time, for whatever
 * reason: then the list goes on to its end and everything is the truth.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "descent.h"

/* What is found by search makes another search necessary, which would wait. */
#define LONGEST_PAUSE_MS 15000

/*
 * Asks for the next page: ids below those searched and above `low`, where the
 * list stands.
 */
void
hs_descent_search(HsDescent *descent, int64 low)
{
	const HsStore *store = descent->store;
	HsApiSearch search;

	descent->low = Max(low, 0);
	search = (HsApiSearch){
		.after_id = descent->low,
		.before_id = descent->high,
		.descending = true,
		.properties = store->mapping->properties
	};

	descent->call = hs_api_search(store->run->api, store->type->object_type,
								  &search);
}

/*
 * Whether all ids of a page descend from below those searched before, and are
 * above those that were not asked for.
 */
static bool
is_descending(const HsDescent *descent, const HsRecordPage *page)
{
	int64		last = descent->high == 0 ? PG_INT64_MAX : descent->high;

	for (int i = 0; i < page->nids; i++)
	{
		if (page->id_numbers[i] >= last ||
			page->id_numbers[i] <= descent->low)
			return false;
		last = page->id_numbers[i];
	}
	return true;
}

/* Whether the index has more below a page, as far as its answer tells. */
static bool
has_more(const HsJson *root)
{
	int			n = hs_json_length(hs_json_member(root, "results"));
	int64		total;

	if (hs_json_type(hs_json_member(root, "paging")) == HS_JSON_OBJECT)
		return n > 0;
	if (hs_json_int64(hs_json_member(root, "total"), &total))
		return n > 0 && total > n;
	return n >= HS_API_SEARCH_LIMIT;
}

/*
 * Reads the page that has come and asks for the next one.  Returns false if
 * there is none: the request is to be repeated, or was of no use, which ends
 * the searches.  The page, in the current memory context, is the caller's to
 * store.
 */
bool
hs_descent_turn(HsDescent *descent, int64 low, HsRecordPage *page)
{
	HsApi	   *api = descent->store->run->api;
	const HsJson *root;

	api->tolerates = HS_TOLERATE_NO_ANSWER;
	if (!hs_api_try_finish(api, descent->call, &root))
	{
		if (hs_api_delay_ms(descent->call) > LONGEST_PAUSE_MS)
			hs_descent_abandon(descent, "HubSpot asks for a pause");
		return false;
	}
	descent->call = NULL;
	if (root == NULL)
	{
		hs_descent_abandon(descent, hs_api_refusal_text(api));
		return false;
	}
	page->provisional = true;
	page->results = hs_json_member(root, "results");
	hs_store_read(descent->store, page);
	if (page->has_nameless || !is_descending(descent, page))
	{
		hs_descent_abandon(descent, page->has_nameless
						   ? "it brought records without a usable id"
						   : "what it brought was not in the order of ids");
		return false;
	}
	if (page->nids > 0)
		descent->high = page->id_numbers[page->nids - 1];
	descent->ended = page->nids == 0 || !has_more(root) ||
		hs_descent_met(descent, low);
	if (!descent->ended)
		hs_descent_search(descent, low);
	return true;
}

/* Whether a list that stands at `low` has met the searches. */
bool
hs_descent_met(const HsDescent *descent, int64 low)
{
	return descent->high != 0 && low >= descent->high - 1;
}

/* Ends the searches; where they came to stays known. */
void
hs_descent_end(HsDescent *descent)
{
	if (descent->call != NULL)
		hs_api_drop(descent->call);
	descent->call = NULL;
	descent->ended = true;
}

/*
 * Gives up, for a reason that is copied into the run's memory: what was
 * searched counts for nothing, and the list has to go on to its end.
 */
void
hs_descent_abandon(HsDescent *descent, const char *problem)
{
	hs_descent_end(descent);
	descent->high = 0;
	descent->problem = MemoryContextStrdup(descent->store->run->context,
										   problem);
}
