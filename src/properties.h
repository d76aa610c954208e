/*-------------------------------------------------------------------------
 *
 * properties.h
 *	  The properties that HubSpot needs for students' progress.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_PROPERTIES_H
#define HS_PROPERTIES_H

#include "postgres.h"

#include "progress.h"
#include "run.h"

/* What came of comparing HubSpot's definitions with what is needed. */
typedef struct HsPropertyReport
{
	int			needed;
	int			created;
	List	   *unusable;		/* of HsKnownProperty * */
	int			forgotten;		/* students to be sent again */
} HsPropertyReport;

extern List *hs_properties_unusable(const pg_uuid_t *connection_id,
									bool *fresh);
extern List *hs_properties_names(List *properties);
extern bool hs_properties_known(HsRun *run, const HsProgress *progress);
extern void hs_properties_ensure(HsRun *run, const HsProgress *progress,
								 HsPropertyReport *report);
extern void hs_properties_doubt(HsRun *run);

#endif							/* HS_PROPERTIES_H */
