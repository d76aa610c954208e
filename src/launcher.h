/*-------------------------------------------------------------------------
 *
 * launcher.h
 *	  Runs by schedule, where the library is preloaded.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_LAUNCHER_H
#define HS_LAUNCHER_H

#include "postgres.h"

extern void hs_launcher_preload(void);
extern PGDLLEXPORT void hs_launcher_main(Datum arg);
extern PGDLLEXPORT void hs_launcher_visit_main(Datum arg);

#endif							/* HS_LAUNCHER_H */
