/*-------------------------------------------------------------------------
 *
 * pull.h
 *	  HubSpot's records into tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_PULL_H
#define HS_PULL_H

#include "run.h"

extern void hs_pull_run(HsRun *run);

#endif							/* HS_PULL_H */
