/*-------------------------------------------------------------------------
 *
 * subxact.h
 *	  Trying something whose failure is no failure of the whole.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_SUBXACT_H
#define HS_SUBXACT_H

#include "postgres.h"

/* What is tried, and whether an error of it is to be returned. */
typedef void (*HsSubxactBody)(void *arg);
typedef bool (*HsSubxactExpects)(const ErrorData *error, void *arg);

extern ErrorData *hs_subxact_try(HsSubxactBody body, HsSubxactExpects expects,
								 void *arg);

#endif							/* HS_SUBXACT_H */
