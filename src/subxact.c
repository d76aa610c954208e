/*-------------------------------------------------------------------------
 *
 * subxact.c
 *	  Trying something whose failure is no failure of the whole.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/resowner.h"

#include "subxact.h"

/*
 * Calls `body` in a subtransaction.  Returns NULL if it went well.  If it
 * threw an error that `expects` accepts, the subtransaction is rolled back
 * and the error returned, palloc'd in the current memory context; any other
 * error is thrown on.  Memory context and resource owner stay as they are.
 */
ErrorData *
hs_subxact_try(HsSubxactBody body, HsSubxactExpects expects, void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		body(arg);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;

	/* Never with the subtransaction open: nobody else would close it. */
	if (error != NULL && !expects(error, arg))
		ReThrowError(error);
	return error;
}
