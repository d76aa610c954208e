/*-------------------------------------------------------------------------
 *
 * guc.h
 *	  The settings of the extension.
 *
 * The variables are written by the server's GUC machinery only.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_GUC_H
#define HS_GUC_H

#include "postgres.h"

/* Most databases that the launcher looks after. */
#define HS_MAX_DATABASES 64

extern char *hs_api_url;
extern int	hs_api_version;
extern char *hs_access_token_file;
extern char *hs_proxy;
extern char *hs_ca_file;
extern int	hs_connect_timeout; /* ms */
extern int	hs_request_timeout; /* ms */
extern int	hs_low_speed_timeout;	/* s */
extern int	hs_max_response_size;	/* kB */
extern int	hs_max_retries;
extern int	hs_retry_delay;		/* ms */
extern int	hs_burst_limit;		/* requests per 10 s, 0 = learn */
extern int	hs_search_limit;	/* requests per s */
extern int	hs_overlap;			/* s */
extern int	hs_deep_overlap;	/* s */
extern int	hs_lock_timeout;	/* ms */
extern int	hs_store_timeout;	/* ms */
extern int	hs_progress_slice;	/* students */
extern int	hs_log_retention;	/* s, 0 = for ever */
extern bool hs_enabled;
extern char *hs_databases;		/* list of identifiers */
extern int	hs_launcher_interval;	/* s */
extern char *hs_schedule_time_zone;

extern void hs_guc_init(void);
extern const char *hs_guc_api_version(void);
extern bool hs_guc_api_is_plain_http(void);

#endif							/* HS_GUC_H */
