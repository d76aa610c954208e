'use strict'

// What pull.js and push.js share: the clients of HubSpot and of PostgreSQL, and
// the words that bench/watch.py waits for.

const http = require('http')
const { Client } = require('@hubspot/api-client')
const pg = require('pg')

// The official client's own limiter and retries; INTERVAL_MS is the least time
// between two requests, 0 where nobody enforces limits. The agent keeps
// connections alive, which the client does not do by itself.
function openHubSpot() {
  return new Client({
    accessToken: process.env.HUBSPOT_TOKEN,
    basePath: process.env.HUBSPOT_URL,
    httpAgent: new http.Agent({ keepAlive: true }),
    limiterOptions: { minTime: Number(process.env.INTERVAL_MS || 0), maxConcurrent: 6 },
    numberOfApiCallRetries: 3
  })
}

// Runs a task with both clients. Says what it does on standard output, and
// waits for the end of standard input before it leaves.
async function main(task) {
  const db = new pg.Client()
  await db.connect()
  console.log(`backend ${db.processID}`)
  const records = await task(openHubSpot(), db)
  console.log(`done ${records}`)
  await new Promise(resolve => process.stdin.on('end', resolve).resume())
  await db.end()
  process.exit(0)
}

function start(task) {
  main(task).catch(error => {
    console.error(error)
    process.exit(1)
  })
}

module.exports = { start }
