/*-------------------------------------------------------------------------
 *
 * reconcile.h
 *	  Settling what a walk has missed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_RECONCILE_H
#define HS_RECONCILE_H

#include "postgres.h"

#include "store.h"

extern int	hs_reconcile(HsStore *store, bool full);

#endif							/* HS_RECONCILE_H */
