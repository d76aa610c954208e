/*-------------------------------------------------------------------------
 *
 * hubspot_sync.h
 *	  Names that every part of the extension shares.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HUBSPOT_SYNC_H
#define HUBSPOT_SYNC_H

#define HS_EXTENSION_NAME "hubspot_sync"

#endif							/* HUBSPOT_SYNC_H */
