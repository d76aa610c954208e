/*-------------------------------------------------------------------------
 *
 * schedule.h
 *	  Jobs of pg_cron.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_SCHEDULE_H
#define HS_SCHEDULE_H

#include "postgres.h"

extern bool hs_schedule_has_job(const char *sync_type);

#endif							/* HS_SCHEDULE_H */
