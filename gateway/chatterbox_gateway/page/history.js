// What was spoken, kept in the browser's IndexedDB: one record for each run of one or several takes.

const KEPT = 60  // runs

let opened = null

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("chatterbox", 1)
    request.onupgradeneeded = () => request.result.createObjectStore("runs", {keyPath: "id"})
    request.onsuccess = () => resolve(request.result)
    request.onerror = () => reject(request.error)
  })
  return opened
}

async function runs(mode, act) {
  const transaction = (await database()).transaction("runs", mode)
  const request = act(transaction.objectStore("runs"))
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result)
    transaction.onabort = () => reject(transaction.error)
  })
}

/** All kept runs, the oldest first. Those beyond the number that is kept are deleted. */
export async function loadRuns() {
  const all = await runs("readonly", store => store.getAll())
  const surplus = all.splice(0, Math.max(0, all.length - KEPT))
  for (const run of surplus) await deleteRun(run.id)
  return all
}

export const saveRun = run => runs("readwrite", store => store.put(run))
export const deleteRun = id => runs("readwrite", store => store.delete(id))
export const deleteAllRuns = () => runs("readwrite", store => store.clear())
