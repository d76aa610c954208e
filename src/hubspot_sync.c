/*-------------------------------------------------------------------------
 *
 * hubspot_sync.c
 *	  Module magic and load-time initialisation.
 *
 * The library is loaded by the first call of one of its functions, by a run's
 * worker, or, optionally, by shared_preload_libraries.  Nothing here touches
 * libcurl: it may start threads, and the postmaster must not have any.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "guc.h"
#include "launcher.h"
#include "ratelimit.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

/*
 * Entry point of the library.
 */
void
_PG_init(void)
{
	hs_guc_init();
	if (process_shared_preload_libraries_in_progress)
	{
		hs_ratelimit_preload();
		hs_launcher_preload();
	}
}
