/*-------------------------------------------------------------------------
 *
 * push.h
 *	  Students' progress onto HubSpot's contacts.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_PUSH_H
#define HS_PUSH_H

#include "run.h"

extern void hs_push_run(HsRun *run);

#endif							/* HS_PUSH_H */
